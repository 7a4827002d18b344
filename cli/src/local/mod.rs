//! A coordinator and workers on this machine, as children of this process: none outlives it.

mod cluster;
mod lock;
mod plan;
mod programs;
mod service;

pub(crate) use cluster::{Cluster, Place};
pub(crate) use plan::Plan;
pub(crate) use programs::{COORDINATOR, WORKER, find_program, version_of};
