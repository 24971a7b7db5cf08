//! What is done to whom.

use super::*;

impl Run<'_> {
    /// Deals a blow; who is held goes on.
    pub(super) fn strike(&mut self, held: Option<Held>, on: Role, blow: Blow) {
        let answer = |held: Option<Held>, answer| {
            if let Some(held) = held {
                held.answer(answer);
            }
        };
        let Some(pid) = self.who(on) else {
            self.tell(format!("{on:?} is not there to be struck"));
            return answer(held, Answer::Go);
        };
        self.tell(format!("==> {on:?} {pid}: {blow:?}"));
        let now = Instant::now();
        let after = |ms: u64| now + Duration::from_millis(ms);
        let struck = match blow {
            Blow::Exit => {
                answer(held, Answer::Exit);
                self.victims.push(Victim { pid, from: now, to: None });
                true
            }
            Blow::Kill => {
                self.victims.push(Victim { pid, from: now, to: None });
                kill(pid);
                answer(held, Answer::Go);
                true
            }
            Blow::Stop(ms) => {
                self.victims.push(Victim { pid, from: now, to: None });
                self.downs.push(Down { pid: Some(pid), from: now, to: None });
                stop(pid);
                answer(held, Answer::Go);
                self.later.push((after(ms), Later::Continue(pid)));
                // While nobody is known to have served, nobody has to: a first daemon is waited for, because
                // it may be opening its data.
                if self.handoffs == 0 && self.serving.is_none() {
                    self.cold = Some(after(ms));
                }
                true
            }
            Blow::Stall(ms) => {
                // It may be ended by force.
                self.victims.push(Victim { pid, from: now, to: None });
                self.later.extend(held.map(|held| (after(ms), Later::Answer(held))));
                true
            }
            Blow::NoDescriptors(ms) => {
                self.later.push((after(ms), Later::Over));
                answer(held, Answer::NoDescriptors(ms));
                true
            }
            Blow::Abort => {
                self.order(&Order::Abort);
                answer(held, Answer::Go);
                true
            }
            Blow::LockHeld(ms) => {
                let taken = DataDirLock::try_take(&data_dir(self.dir));
                let struck = taken.is_ok();
                if let Ok(lock) = taken {
                    let release = move || drop(lock.release());
                    self.later.push((after(ms), Later::Lift(Box::new(release))));
                }
                answer(held, Answer::Go);
                struck
            }
            Blow::NoBinary(ms) => {
                let (path, aside) = (program(self.dir), self.dir.join("aside"));
                let struck = fs::rename(&path, &aside).is_ok();
                let back = move || drop(fs::rename(aside, path));
                self.later.push((after(ms), Later::Lift(Box::new(back))));
                answer(held, Answer::Go);
                struck
            }
            Blow::Lacks(shortage, place, ms) => {
                let lift = shortage::begin(self.dir, shortage, place);
                let struck = lift.is_ok();
                match lift {
                    Ok(lift) => self.later.push((after(ms), Later::Lift(lift))),
                    Err(error) => self.tell(format!("that cannot be done: {error}")),
                }
                answer(held, Answer::Go);
                struck
            }
            Blow::Jump(ms) => {
                for pid in self.everybody() {
                    self.victims.push(Victim { pid, from: now, to: None });
                    stop(pid);
                    self.later.push((after(ms), Later::Continue(pid)));
                }
                self.jumps.push((now, after(ms)));
                answer(held, Answer::Go);
                true
            }
            Blow::Unlink(place) => {
                let unlinked = fs::remove_file(match place {
                    Place::Data => data_dir(self.dir).join(".handoff.lock"),
                    Place::Run => control_path(self.dir),
                    Place::State => journal(self.dir),
                });
                answer(held, Answer::Go);
                unlinked.is_ok()
            }
            Blow::Garbage => {
                let written = fs::write(journal(self.dir), "this is no journal");
                answer(held, Answer::Go);
                written.is_ok()
            }
            Blow::Strangers(stranger, ms) => {
                let come = stranger.come(self.dir, Duration::from_millis(ms));
                answer(held, Answer::Go);
                come.is_ok()
            }
        };
        if struck {
            self.struck += 1;
            self.last_blow = Some(now);
        } else if self.case.story.is_some() {
            self.problems.push(format!("story: this could not be done: {blow:?}"));
        }
    }

    /// All processes that are there, but for the run's own.
    pub(super) fn everybody(&self) -> Vec<u32> {
        let bosses = self.boss.iter().chain(self.rival.iter().map(|rival| &rival.boss));
        let all = bosses.map(|boss| boss.pid).chain(self.daemons.iter().copied());
        all.filter(|pid| !self.gone.contains(pid)).collect()
    }
}
