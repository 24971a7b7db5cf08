//! The end of a run, and what is wrong by then.

use super::*;

impl Run<'_> {
    /// Everything is ended; what is left over, and what the clients have seen.
    pub(super) fn ends(mut self) -> Ran {
        // Those who are held go on meanwhile, or nobody would be answered.
        if let Some(load) = &self.load {
            load.no_more();
        }
        self.until("every client has its answer", |run| {
            run.load.as_ref().is_none_or(Load::is_over)
        });
        let record = self.load.take().map(Load::record).unwrap_or_default();
        self.last_blow = None;
        let missed = std::mem::take(&mut self.strikes);
        if self.case.story.is_some() {
            let missed =
                missed.iter().map(|strike| format!("story: not reached: {}", strike.name()));
            self.problems.extend(missed);
        }
        for (_, later) in std::mem::take(&mut self.later) {
            match later {
                Later::Continue(pid) => signal(pid, Signal::CONT),
                Later::Answer(held) => held.answer(Answer::Go),
                Later::Lift(lift) => lift(),
                Later::Over => {}
            }
        }
        self.ending = true;
        self.order(&Order::Stop);
        self.until("the supervisor stops", |run| run.stopped.is_some() && run.boss.is_none());
        if let Some(left) = self.stopped.take().filter(|left| !left.is_empty()) {
            self.problems.push(format!("I6: the supervisor could not end {left:?}"));
        }
        self.leftovers();
        let (doubled, stalled) = self.watch.stop();
        self.problems.extend(doubled);
        let mut ran = Ran {
            name: self.case.name.clone(),
            struck: self.struck,
            problems: self.problems,
            steps: self.steps,
            timeline: self.timeline,
            handoffs: self.handoffs,
            requests: (record.acknowledged.len() + record.failed.len()) as u64,
            acknowledged: record.acknowledged.len() as u64,
            lost: 0,
            refused: 0,
            cut: 0,
            declined: 0,
            gap: 0,
            stalled: 0,
            disturbed: 0,
        };
        match stored(self.dir, self.case.incumbent.speaks()) {
            Ok(mut stored) => {
                // What it was given there before it was seen to be wrong is where it says, and no rule
                // brings it back.
                if let Actor::Wrapped(Wrap::Elsewhere, _) = self.case.successor {
                    stored.extend(database(&elsewhere(self.dir)).unwrap_or_default());
                }
                let lost = lost(&record.acknowledged, &stored);
                ran.lost = lost.len() as u64;
                if !lost.is_empty() {
                    ran.problems.push(format!("I3: acknowledged and not there once: {lost:?}"));
                }
            }
            Err(error) => ran.problems.push(format!("I3: the data cannot be read: {error}")),
        }
        let at = |when: Instant| when.saturating_duration_since(self.start).as_secs_f64();
        for (request, failure) in &record.failed {
            let excused = |victim: &&Victim| {
                request.over >= victim.from && victim.to.is_none_or(|to| request.begun <= to)
            };
            if failure.kind == Failed::Declined {
                ran.declined += 1;
                continue;
            }
            if failure.kind == Failed::Cut && self.victims.iter().any(|victim| excused(&victim)) {
                ran.cut += 1;
                continue;
            }
            ran.refused += 1;
            let Request { key, begun, over } = request;
            let (begun, over, why) = (at(*begun), at(*over), &failure.why);
            ran.problems.push(format!("I4: {key}, {begun:.3} s to {over:.3} s: {why}"));
        }
        // What nobody can mend before one of them goes on.
        let both = overlaps(&self.downs, Instant::now());
        let (skips, anew) = ([&self.jumps[..], &both].concat(), both.iter().map(|(_, to)| *to));
        let from = self.cold.unwrap_or(self.start);
        let gap = gap(&record, from, &skips, &anew.collect::<Vec<_>>());
        ran.gap = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
        ran.stalled = u64::try_from(stalled.as_millis()).unwrap_or(u64::MAX);
        if gap > SERVES {
            ran.problems.push(format!("I5: nobody served for {} ms", ran.gap));
        }
        ran
    }

    /// I6: no process, no file.
    pub(super) fn leftovers(&mut self) {
        let limit = Instant::now() + Duration::from_secs(5);
        // Those whose parent has just ended come here, and are reaped.
        loop {
            self.reap();
            let left = wait(WaitOptions::NOHANG);
            if left.is_err() {
                break;
            }
            if Instant::now() > limit {
                let left = children();
                self.problems.push(format!("I6: processes are left: {left:?}"));
                for (pid, _) in left {
                    signal(pid, Signal::KILL);
                }
                thread::sleep(Duration::from_millis(100));
                self.reap();
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        const KNOWN: [&str; 9] = [
            "data/.handoff.lock",
            "data/.handoff.pidfile",
            "data/kv.redb",
            "data/writes.log",
            "run/control",
            "state/journal",
            // Of a rival, which is killed.
            "state/journal.rival",
            "state/journal.rival.tmp",
            "data/lost+found",
        ];
        for name in DIRECTORIES {
            let entries = fs::read_dir(self.dir.join(name)).into_iter().flatten().flatten();
            for entry in entries {
                let file = format!("{name}/{}", entry.file_name().to_string_lossy());
                let known = KNOWN.contains(&file.as_str());
                if !known && !self.story.leaves.contains(&file) {
                    self.problems.push(format!("I6: a file is left: {file}"));
                }
            }
        }
        for file in self.story.leaves.iter().filter(|file| !self.dir.join(file).exists()) {
            self.problems.push(format!("story: this was to be left: {file}"));
        }
    }
}

/// The longest time between two acknowledgements, from then on, without what is skipped; it is counted
/// anew where it is said.
pub(in crate::matrix) fn gap(
    record: &Record,
    from: Instant,
    skips: &[(Instant, Instant)],
    anew: &[Instant],
) -> Duration {
    let mut times: Vec<Instant> = record.acknowledged.iter().map(|request| request.over).collect();
    times.extend(anew);
    times.retain(|over| *over > from);
    times.push(from);
    times.sort();
    let skipped = |one: Instant, next: Instant| {
        let skips = skips
            .iter()
            .map(|(from, to)| (*to).min(next).saturating_duration_since((*from).max(one)));
        skips.sum::<Duration>()
    };
    let gaps =
        times.windows(2).map(|pair| (pair[1] - pair[0]).saturating_sub(skipped(pair[0], pair[1])));
    gaps.max().unwrap_or_default()
}

/// When two were down at the same time.
pub(super) fn overlaps(downs: &[Down], now: Instant) -> Vec<(Instant, Instant)> {
    let end = |down: &Down| down.to.unwrap_or(now);
    let pairs = downs.iter().enumerate().flat_map(|(place, one)| {
        downs[place + 1..]
            .iter()
            .filter(|other| other.pid != one.pid)
            .map(move |other| (one, other))
    });
    let mut both: Vec<_> = pairs
        .map(|(one, other)| (one.from.max(other.from), end(one).min(end(other))))
        .filter(|(from, to)| from < to)
        .collect();
    both.sort();
    let mut merged: Vec<(Instant, Instant)> = Vec::new();
    for (from, to) in both {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// How long a signal may take to arrive.
const ARRIVES: Duration = Duration::from_millis(500);

/// Kills a process, and waits until it has ended: another of its cores may go on for a moment.
pub(super) fn kill(pid: u32) {
    let process = PidFd::open(pid);
    signal(pid, Signal::KILL);
    let _ = process.and_then(|process| process.wait(Some(ARRIVES)));
}

/// Stops a process, and waits until it has stopped, which nothing tells to who is not its parent.
pub(super) fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    let limit = Instant::now() + ARRIVES;
    while runs(pid) && Instant::now() < limit {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Whether a thread of it is neither stopped nor gone.
fn runs(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    });
    states.any(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// The descriptors of a process.
pub(super) fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

/// What a process has of a service manager's that is for one process only.
pub(super) fn service_variables(pid: u32) -> Vec<String> {
    let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let variables = String::from_utf8_lossy(&variables).into_owned();
    let names = ["LISTEN_PID=", "NOTIFY_SOCKET=", "WATCHDOG_"];
    let is_one = |it: &&str| names.iter().any(|name| it.starts_with(name));
    variables.split('\0').filter(is_one).map(str::to_string).collect()
}

/// The children of this process, and what they are.
pub(super) fn children() -> Vec<(u32, String)> {
    let own = std::process::id();
    let tasks = fs::read_dir(format!("/proc/{own}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<u32> = lists
        .flat_map(|list| list.split(' ').filter_map(|it| it.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.into_iter()
        .map(|pid| (pid, fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_two_are_down_is_not_counted() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let down =
            |pid, from, to: Option<u64>| Down { pid: Some(pid), from: at(from), to: to.map(at) };
        let one = [down(1, 0, Some(12)), down(2, 12, Some(20)), down(1, 12, Some(14))];
        assert_eq!(overlaps(&one[..2], at(60)), [], "one after the other");
        assert_eq!(overlaps(&one, at(60)), [(at(12), at(14))]);
        let three = [down(3, 2, None), down(1, 1, Some(13)), down(2, 3, Some(15))];
        assert_eq!(overlaps(&three, at(60)), [(at(2), at(15))]);
    }

    #[test]
    fn a_gap_is_counted_anew_when_one_of_two_goes_on() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let request = |over| Request { key: String::new(), begun: at(over), over: at(over) };
        let acknowledged = [1, 2, 22].map(request).into();
        let record = Record { acknowledged, failed: Vec::new() };
        assert_eq!(gap(&record, start, &[], &[]), Duration::from_secs(20));
        let both = [(at(4), at(14))];
        assert_eq!(gap(&record, start, &both, &[]), Duration::from_secs(10));
        assert_eq!(gap(&record, start, &both, &[at(14)]), Duration::from_secs(8));
    }
}
