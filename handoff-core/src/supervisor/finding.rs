//! Finding out who serves, and starting a daemon where nobody does (R10, R17).

use super::*;

impl Supervisor {
    pub(super) fn find(&mut self, own: Vec<u32>, out: &mut Out) {
        let started = None;
        let finding =
            Finding { own, started, spawning: false, ending: None, stopped: false, told: false };
        // A look at the lock that was asked for earlier tells nothing of now.
        if self.check == Flight::Out {
            self.check = Flight::Stale;
        }
        self.state = State::Finding(finding);
        self.want_probe(out);
    }

    pub(super) fn found(&mut self, now: Instant, who: Option<u32>, out: &mut Out) {
        let State::Finding(finding) = &mut self.state else {
            return;
        };
        match who {
            // Whoever is being started is awaited first; it will find out that another serves.
            Some(_) if finding.spawning => self.recheck_later(now),
            Some(pid) => {
                let started = finding.started == Some(pid);
                self.timers = Timers::default();
                self.state = State::Idle;
                out.push(Output::Event(Event::Serving { pid, started }));
            }
            None => {
                if finding.started.is_some() {
                    self.recheck_later(now);
                } else {
                    self.want_check(out);
                }
            }
        }
    }

    pub(super) fn found_lock(&mut self, now: Instant, lock: LockState, out: &mut Out) {
        let timing = self.config.timing;
        let State::Finding(finding) = &mut self.state else {
            return;
        };
        let (holder, stopped) = match lock {
            LockState::Free | LockState::Unknown => {
                if !finding.spawning {
                    finding.spawning = true;
                    // Whoever held the lock has let go: it is not to be ended any more.
                    finding.ending = None;
                    self.timers.retain(|timer| !matches!(timer, Timer::Hung | Timer::EndGrace));
                    out.push(Output::Do(Effect::Spawn { successor: false }));
                }
                return;
            }
            LockState::Held { pid } => (pid, false),
            LockState::Stopped { pid } => (Some(pid), true),
        };
        if !finding.told {
            finding.told = true;
            out.push(Output::Event(Event::Waiting { holder }));
        }
        let ours = holder.filter(|pid| finding.own.contains(pid));
        let changed = finding.ending != ours;
        if changed {
            finding.ending = ours;
            self.timers.clear(Timer::EndGrace);
        }
        // It may be opening its data, but not while it is stopped. Once it is told to end, that stands.
        let ending = self.timers.at(Timer::EndGrace).is_some();
        if changed || (finding.stopped != stopped && !ending) {
            finding.stopped = stopped;
            let patience = if stopped { timing.ask } else { timing.unanswered };
            self.timers.set(Timer::Hung, now + patience);
        }
        self.recheck_later(now);
    }
}
