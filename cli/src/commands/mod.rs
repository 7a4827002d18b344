//! One file a command, or a few that are alike.

pub(crate) mod cluster;
pub(crate) mod doctor;
pub(crate) mod jobs;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod presets;
pub(crate) mod run;
pub(crate) mod submit;
pub(crate) mod up;
