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
        let gap = gap(&record, self.cold.unwrap_or(self.start), &self.jumps);
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

/// The longest time between two acknowledgements, from then on, without that in which all were stopped.
pub(in crate::matrix) fn gap(
    record: &Record,
    from: Instant,
    jumps: &[(Instant, Instant)],
) -> Duration {
    let mut times: Vec<Instant> = record.acknowledged.iter().map(|request| request.over).collect();
    times.retain(|over| *over > from);
    times.push(from);
    times.sort();
    let skipped = |one: Instant, next: Instant| {
        let skips = jumps
            .iter()
            .map(|(from, to)| (*to).min(next).saturating_duration_since((*from).max(one)));
        skips.sum::<Duration>()
    };
    let gaps =
        times.windows(2).map(|pair| (pair[1] - pair[0]).saturating_sub(skipped(pair[0], pair[1])));
    gaps.max().unwrap_or_default()
}

pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
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
