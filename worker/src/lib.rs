//! The anybit worker.
//!
//! - [`agent`]: registers at the coordinator and supervises one trainer process per rank.
//! - [`trainer_link`]: a trainer's side of the socket to its agent.
//! - [`assignment`]: the file that an agent hands to a trainer.
//! - [`train`]: a trainer process: its loop and the joint step.
//! - [`dist`]: collectives: c10d through a cxx bridge.
//! - [`data`]: data sets, the elastic sampler, batches ahead of time.
//! - [`checkpoint`]: a job's state on disk.
//! - [`settings`]: the agent's settings.
//! - [`golden`], [`bench`]: the programs that check the numbers and time the step.

pub mod agent;
pub mod assignment;
pub mod bench;
pub mod checkpoint;
pub mod data;
pub mod dist;
mod frame;
pub mod golden;
pub mod settings;
pub mod train;
pub mod trainer_link;
