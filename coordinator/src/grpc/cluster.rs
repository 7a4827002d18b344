//! `ClusterService`.

use anybit_proto::v1::cluster_service_server::ClusterService;
use anybit_proto::v1::{ListWorkersRequest, ListWorkersResponse};
use tonic::{Request, Response, Status};

use super::error::ApiError;
use super::{Api, convert};

#[tonic::async_trait]
impl ClusterService for Api {
    async fn list_workers(
        &self,
        _request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let workers = self.engine.workers().await.map_err(ApiError::from)?;
        let workers = workers.into_iter().map(convert::worker).collect();
        Ok(Response::new(ListWorkersResponse { workers }))
    }
}
