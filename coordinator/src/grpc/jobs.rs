//! `JobService`.

use anybit_proto::v1::job_service_server::JobService;
use anybit_proto::v1::{
    CancelJobRequest, CancelJobResponse, GetJobRequest, GetJobResponse, ListCheckpointsRequest,
    ListCheckpointsResponse, ListJobsRequest, ListJobsResponse, StreamMetricsRequest, StreamMetricsResponse,
    SubmitJobRequest, SubmitJobResponse, TailLogsRequest, TailLogsResponse, WatchJobRequest,
    WatchJobResponse,
};
use anybit_shared::ids::JobId;
use anybit_shared::spec::JobSpec;
use tonic::{Request, Response, Status};

use super::error::ApiError;
use super::{Api, DEFAULT_PAGE, MAX_KEY_CHARS, MAX_PAGE, MAX_SPEC_BYTES, Stream, convert, streams};
use crate::engine::Created;

#[tonic::async_trait]
impl JobService for Api {
    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let request = request.into_inner();
        let spec = read_spec(&request.spec_toml)?;
        let key = read_key(request.idempotency_key)?;
        let new = convert::new_job(&spec, key);
        let (view, created) = self.engine.submit(new).await.map_err(ApiError::from)?;
        let job = Some(convert::job(&view));
        Ok(Response::new(SubmitJobResponse { job, created: created == Created::Now }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        let view = self.engine.view(&id).await.map_err(ApiError::from)?;
        Ok(Response::new(GetJobResponse { job: Some(convert::job(&view)) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let states: Vec<_> =
            request.states.into_iter().map(convert::job_state_from).collect::<Result<_, _>>()?;
        let page = match request.page_size {
            0 => DEFAULT_PAGE,
            size if size <= MAX_PAGE => size,
            size => return Err(ApiError::invalid(format!("page_size {size} is above {MAX_PAGE}")).into()),
        };
        let before = match request.page_token.as_str() {
            "" => None,
            token => {
                Some(JobId::new(token).map_err(|_| ApiError::invalid("page_token is not one given out"))?)
            }
        };
        // One more than asked for tells whether there is another page.
        let mut views = self.engine.list(&states, before.as_ref(), page + 1).await.map_err(ApiError::from)?;
        let more = views.len() > page as usize;
        views.truncate(page as usize);
        let last = views.last().filter(|_| more);
        let next_page_token = last.map(|view| view.job.info.id.to_string()).unwrap_or_default();
        let jobs = views.iter().map(|view| convert::job(view)).collect();
        Ok(Response::new(ListJobsResponse { jobs, next_page_token }))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        let view = self.engine.cancel(&id).await.map_err(ApiError::from)?;
        Ok(Response::new(CancelJobResponse { job: Some(convert::job(&view)) }))
    }

    type WatchJobStream = Stream<WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        let watched = self.engine.watch(&id).await.map_err(ApiError::from)?;
        Ok(Response::new(streams::watch(watched, self.shutdown.clone())))
    }

    type StreamMetricsStream = Stream<StreamMetricsResponse>;

    async fn stream_metrics(
        &self,
        request: Request<StreamMetricsRequest>,
    ) -> Result<Response<Self::StreamMetricsStream>, Status> {
        let request = request.into_inner();
        let id = self.find(&request.job_id).await?;
        let watched = self.engine.watch(&id).await.map_err(ApiError::from)?;
        Ok(Response::new(streams::metrics(self.clone(), id, watched, &request)))
    }

    type TailLogsStream = Stream<TailLogsResponse>;

    async fn tail_logs(
        &self,
        request: Request<TailLogsRequest>,
    ) -> Result<Response<Self::TailLogsStream>, Status> {
        let request = request.into_inner();
        let id = self.find(&request.job_id).await?;
        let watched = self.engine.watch(&id).await.map_err(ApiError::from)?;
        Ok(Response::new(streams::logs(self.clone(), id, watched, request)))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        let view = self.engine.view(&id).await.map_err(ApiError::from)?;
        let kept = convert::checkpoints_kept(&view.job.info.spec_toml);
        let stored = self.engine.store().checkpoints(&id, kept).await.map_err(ApiError::from)?;
        let checkpoints = stored.iter().filter_map(|payload| convert::checkpoint(payload)).collect();
        Ok(Response::new(ListCheckpointsResponse { checkpoints }))
    }
}

impl Api {
    /// The job whose id begins with this text.
    async fn find(&self, prefix: &str) -> Result<JobId, ApiError> {
        let prefix = JobId::new(prefix.to_ascii_lowercase())?;
        Ok(self.engine.find(prefix.as_str()).await?)
    }
}

fn read_spec(text: &str) -> Result<JobSpec, ApiError> {
    if text.len() > MAX_SPEC_BYTES {
        let bytes = text.len();
        return Err(ApiError::invalid(format!("the spec has {bytes} bytes: at most {MAX_SPEC_BYTES}")));
    }
    Ok(JobSpec::from_toml(text)?)
}

fn read_key(key: String) -> Result<Option<String>, ApiError> {
    match key.chars().count() {
        0 => Ok(None),
        1..=MAX_KEY_CHARS => Ok(Some(key)),
        chars => {
            Err(ApiError::invalid(format!("idempotency_key has {chars} characters: at most {MAX_KEY_CHARS}")))
        }
    }
}
