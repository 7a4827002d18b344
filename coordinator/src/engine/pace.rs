//! How fast a job trains.

use anybit_shared::ids::GlobalStep;

/// What a step weighs against those before it.
const WEIGHT: f64 = 0.1;

/// The newest step, and a moving average of steps' seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    step: GlobalStep,
    steps: u32,
    seconds: f64,
}

impl Pace {
    /// Counts a step.
    pub fn add(&mut self, step: GlobalStep, seconds: f64) {
        self.step = self.step.max(step);
        if seconds.is_finite() && seconds > 0.0 {
            // The first few count alike, or the first (slow) one would linger.
            let weight = WEIGHT.max(1.0 / (f64::from(self.steps) + 1.0));
            self.seconds += weight * (seconds - self.seconds);
            self.steps = self.steps.saturating_add(1);
        }
    }

    /// Counts later steps.
    pub fn extend(&mut self, later: Self) {
        for _ in 0..later.steps.min(100) {
            self.add(later.step, later.seconds);
        }
        self.step = self.step.max(later.step);
    }

    /// The newest step.
    pub fn step(self) -> GlobalStep {
        self.step
    }

    /// The average.
    pub fn seconds_per_step(self) -> f64 {
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_the_newer_steps() {
        let mut pace = Pace::default();
        for step in 1..=4 {
            pace.add(GlobalStep(step), 1.0);
        }
        assert_eq!((pace.step(), pace.seconds_per_step()), (GlobalStep(4), 1.0));
        let mut later = Pace::default();
        (5..=100).for_each(|step| later.add(GlobalStep(step), 3.0));
        later.add(GlobalStep(101), f64::NAN);
        pace.extend(later);
        assert_eq!(pace.step(), GlobalStep(101));
        assert!((pace.seconds_per_step() - 3.0).abs() < 0.01);
    }
}
