//! Whether and when a guest that has ended is started again.

use std::time::Duration;

use vm_api::manifest::RunStrategy;

/// A guest that ran this long has settled: what ends it later is a new story.
const SETTLED: Duration = Duration::from_secs(60);
/// Longest wait before a start.
const LONGEST: Duration = Duration::from_secs(60);

/// How a guest's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The guest powered off.
    Shutdown,
    /// The guest wants to start again.
    Reset,
    /// The VMM failed or was killed.
    Failed(String),
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The guest starts again after this time.
    Start(Duration),
    /// It stays as it is.
    Nothing,
}

/// Keeps count of quick endings.
#[derive(Debug)]
pub(super) struct Restarts {
    strategy: RunStrategy,
    quick: u32,
}

impl Restarts {
    pub(super) fn new(strategy: RunStrategy) -> Self {
        Self { strategy, quick: 0 }
    }

    /// Decides after a run of length `ran`. A reset is the guest's own restart, whatever the strategy. The first start
    /// is at once; endings in quick succession wait 1 s, 2 s, 4 s … 60 s.
    pub(super) fn after(&mut self, ending: &Ending, ran: Duration) -> Next {
        let again = match (ending, self.strategy) {
            (Ending::Reset, _) | (_, RunStrategy::Always) => true,
            (Ending::Failed(_), RunStrategy::RerunOnFailure) => true,
            (Ending::Shutdown, RunStrategy::RerunOnFailure) => false,
            (_, RunStrategy::Manual | RunStrategy::Halted | RunStrategy::Once) => false,
        };
        if !again {
            return Next::Nothing;
        }
        if ran >= SETTLED {
            self.quick = 0;
        }
        let wait = match self.quick {
            0 => Duration::ZERO,
            quick => Duration::from_secs(1u64 << (quick - 1).min(6)).min(LONGEST),
        };
        self.quick = self.quick.saturating_add(1);
        Next::Start(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(1);

    fn next(strategy: RunStrategy, ending: &Ending) -> Next {
        Restarts::new(strategy).after(ending, SHORT)
    }

    #[test]
    fn each_strategy_restarts_what_it_promises() {
        let failed = Ending::Failed("x".into());
        let now = Next::Start(Duration::ZERO);
        for (strategy, after_shutdown, after_failure) in [
            (RunStrategy::Always, now, now),
            (RunStrategy::RerunOnFailure, Next::Nothing, now),
            (RunStrategy::Manual, Next::Nothing, Next::Nothing),
            (RunStrategy::Once, Next::Nothing, Next::Nothing),
        ] {
            assert_eq!(next(strategy, &Ending::Shutdown), after_shutdown, "{strategy:?}");
            assert_eq!(next(strategy, &failed), after_failure, "{strategy:?}");
            assert_eq!(next(strategy, &Ending::Reset), now, "{strategy:?}");
        }
    }

    #[test]
    fn quick_endings_wait_longer_and_longer_until_one_settles() {
        let mut restarts = Restarts::new(RunStrategy::Always);
        let mut waits = || match restarts.after(&Ending::Shutdown, SHORT) {
            Next::Start(wait) => wait.as_secs(),
            Next::Nothing => panic!("not restarted"),
        };
        let seconds: Vec<_> = (0..10).map(|_| waits()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(restarts.after(&Ending::Shutdown, SETTLED), Next::Start(Duration::ZERO));
        assert_eq!(restarts.after(&Ending::Shutdown, SHORT), Next::Start(SHORT));
    }
}
