//! The anybit worker.
//!
//! - [`agent`]: registers at the coordinator and supervises one trainer process per rank.
//! - [`trainer_link`]: a trainer's side of the socket to its agent.
//! - [`assignment`]: the file that an agent hands to a trainer.
//! - [`settings`]: the agent's settings.

pub mod agent;
pub mod assignment;
mod frame;
pub mod settings;
pub mod trainer_link;
