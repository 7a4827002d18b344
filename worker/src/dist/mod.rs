//! Collectives: PyTorch's c10d, safe to call from Rust.
//!
//! [`Store`] is the meeting place that rank 0's agent opens; [`Group`] the ranks of one
//! generation; [`Reducer`] DDP's bucketed gradient all-reduce, which overlaps with the backward
//! pass. [`Replicas`] is what the trainer holds: a group, or one rank alone.

mod bridge;
mod host;
mod replicas;

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::IntoRawFd;
use std::time::Duration;

use anybit_anyprec::native::{TensorList, borrow};
use anybit_shared::ids::Rank;
use cxx::UniquePtr;
use tch::Tensor;

use bridge::ffi;
pub use host::TcpStoreHost;
pub use replicas::{AverageError, Replicas};

/// Why ranks could not work together.
#[derive(Debug, thiserror::Error)]
pub enum DistError {
    /// The network interface or address for collectives is not this host's.
    #[error("network interface or address {given:?} cannot be used for collectives: {problem}")]
    Interface {
        /// As configured.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No store could be opened.
    #[error("cannot open a rendezvous store on {address}: {problem}")]
    Store {
        /// Where.
        address: IpAddr,
        /// What happened.
        problem: String,
    },
    /// The ranks did not all meet in time.
    #[error("rank {rank} of {world_size} did not meet the others at {store}: {problem}")]
    Rendezvous {
        /// This rank.
        rank: Rank,
        /// Ranks expected.
        world_size: u32,
        /// The store's address.
        store: String,
        /// What happened.
        problem: String,
    },
    /// A collective failed, which means that a peer is gone or silent.
    #[error("{what} failed, a peer is gone or silent: {problem}")]
    Collective {
        /// Which collective.
        what: &'static str,
        /// What happened.
        problem: String,
    },
}

/// First line of a C++ exception: the rest is a stack trace.
fn brief(exception: &cxx::Exception) -> String {
    exception.what().lines().next().unwrap_or("unknown error").to_owned()
}

/// A rendezvous store, open until dropped.
pub struct Store {
    _server: UniquePtr<ffi::StoreServer>,
    address: SocketAddr,
}

impl Store {
    /// Opens a store on a free port of one of this host's addresses.
    pub fn open(address: IpAddr, timeout: Duration) -> Result<Self, DistError> {
        let failed = |problem: String| DistError::Store { address, problem };
        let listener = TcpListener::bind((address, 0)).map_err(|e| failed(e.to_string()))?;
        let bound = listener.local_addr().map_err(|e| failed(e.to_string()))?;
        let fd = listener.into_raw_fd(); // the server closes it
        let server = ffi::open_store(&address.to_string(), bound.port(), fd, millis(timeout));
        Ok(Self { _server: server.map_err(|e| failed(brief(&e)))?, address: bound })
    }

    /// Where the other ranks find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// How a rank meets its peers.
#[derive(Debug, Clone)]
pub struct Meeting {
    /// host:port of the store.
    pub store: String,
    /// Tells this generation's keys from others': job and generation.
    pub prefix: String,
    /// This rank.
    pub rank: Rank,
    /// Ranks in all.
    pub world_size: u32,
    /// Name of a network interface, or an address of this host, for collectives; by default the
    /// address from which this host reaches the store.
    pub interface: Option<String>,
    /// A collective that takes longer has lost a peer.
    pub collective_timeout: Duration,
    /// All ranks must have met by then.
    pub rendezvous_timeout: Duration,
}

/// The ranks of one generation, over Gloo.
pub struct Group {
    inner: UniquePtr<ffi::Group>,
    /// The rendezvous timeout.
    patience_ms: u64,
}

impl Group {
    /// Meets the other ranks; returns when all are there.
    pub fn join(meeting: &Meeting) -> Result<Self, DistError> {
        let failed = |problem: String| DistError::Rendezvous {
            rank: meeting.rank,
            world_size: meeting.world_size,
            store: meeting.store.clone(),
            problem,
        };
        let store = meeting
            .store
            .to_socket_addrs()
            .map_err(|e| failed(e.to_string()))?
            .next()
            .ok_or_else(|| failed("the name has no address".to_owned()))?;
        let loopback = "; the store is on a loopback address: if the ranks are on several hosts, give rank 0's \
                        agent the coordinator's network address, or --interface";
        let failed = |problem: String| {
            failed(if store.ip().is_loopback() { format!("{problem}{loopback}") } else { problem })
        };
        let (device, is_address) = match &meeting.interface {
            Some(given) => (given.clone(), given.parse::<IpAddr>().is_ok()),
            None => (local_address_towards(store).map_err(|e| failed(e.to_string()))?.to_string(), true),
        };
        let inner = ffi::join_gloo(
            &store.ip().to_string(),
            store.port(),
            &meeting.prefix,
            meeting.rank.0.cast_signed(),
            meeting.world_size.cast_signed(),
            &device,
            is_address,
            millis(meeting.collective_timeout),
            millis(meeting.rendezvous_timeout),
        );
        Ok(Self {
            inner: inner.map_err(|e| failed(brief(&e)))?,
            patience_ms: millis(meeting.rendezvous_timeout),
        })
    }

    /// Sums a tensor over the ranks, in place; every rank ends with the same bits.
    pub fn sum(&self, tensor: &Tensor, what: &'static str) -> Result<(), DistError> {
        self.all_reduce(tensor, 0, what)
    }

    fn all_reduce(&self, tensor: &Tensor, kind: u8, what: &'static str) -> Result<(), DistError> {
        self.all_reduce_within(tensor, kind, 0, what)
    }

    fn all_reduce_within(
        &self,
        tensor: &Tensor,
        kind: u8,
        timeout_ms: u64,
        what: &'static str,
    ) -> Result<(), DistError> {
        self.inner
            .all_reduce(borrow(tensor), kind, timeout_ms)
            .map_err(|e| DistError::Collective { what, problem: brief(&e) })
    }

    /// Returns once every rank has called it. Waits as long as a rendezvous may take: one rank may
    /// be writing a checkpoint.
    pub fn wait_for_all(&self, what: &'static str) -> Result<(), DistError> {
        self.all_reduce_within(&Tensor::from_slice(&[0.0f32]), 0, self.patience_ms, what)
    }

    /// Overwrites the tensors by rank `root`'s.
    pub fn broadcast(&self, tensors: &TensorList, root: Rank, what: &'static str) -> Result<(), DistError> {
        self.inner
            .broadcast(tensors.raw(), root.0.cast_signed())
            .map_err(|e| DistError::Collective { what, problem: brief(&e) })
    }

    /// The least and the greatest over all ranks of each number ([n] int64).
    pub fn extremes(&self, numbers: &[i64], what: &'static str) -> Result<(Vec<i64>, Vec<i64>), DistError> {
        let reduce = |kind| {
            let tensor = Tensor::from_slice(numbers);
            self.all_reduce(&tensor, kind, what)?;
            Vec::<i64>::try_from(&tensor).map_err(|e| DistError::Collective { what, problem: e.to_string() })
        };
        Ok((reduce(1)?, reduce(2)?))
    }
}

/// DDP's Reducer over a group's ranks.
pub struct Reducer {
    inner: UniquePtr<ffi::Reducer>,
}

impl Reducer {
    /// Over `parameters`, in forward order. With `find_unused`, the reducing backward pass need
    /// not reach every parameter (the sequential schedule).
    pub fn new(group: &Group, parameters: &TensorList, find_unused: bool) -> Result<Self, DistError> {
        let inner = ffi::new_reducer(&group.inner, parameters.raw(), find_unused);
        Ok(Self {
            inner: inner
                .map_err(|e| DistError::Collective { what: "building buckets", problem: brief(&e) })?,
        })
    }

    /// The backward pass of `loss` is the step's last: its gradients, with those that earlier
    /// passes left, are averaged over the ranks as their buckets fill.
    pub fn reduce_in_backward_of(&mut self, loss: &Tensor) -> Result<(), DistError> {
        let mut reducer = self.inner.pin_mut();
        reducer
            .as_mut()
            .prepare_for_forward()
            .and_then(|()| reducer.prepare_for_backward(borrow(loss)))
            .map_err(|e| DistError::Collective {
                what: "preparing the gradient all-reduce",
                problem: brief(&e),
            })
    }
}

/// The address of this host from which packets to `peer` leave. Sends nothing.
pub fn local_address_towards(peer: SocketAddr) -> std::io::Result<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// The address that a configured interface name or address stands for.
pub fn interface_address(given: &str) -> Result<IpAddr, DistError> {
    if let Ok(address) = given.parse() {
        return Ok(address);
    }
    let failed = |problem: String| DistError::Interface { given: given.to_owned(), problem };
    let interfaces: Vec<_> = nix::ifaddrs::getifaddrs().map_err(|e| failed(e.to_string()))?.collect();
    let found = interfaces.iter().filter(|i| i.interface_name == given).find_map(|i| {
        let address = i.address.as_ref()?;
        address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()))
    });
    found.ok_or_else(|| {
        let mut names: Vec<&str> = interfaces.iter().map(|i| i.interface_name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        failed(format!("this host's interfaces with addresses are {}", names.join(", ")))
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
