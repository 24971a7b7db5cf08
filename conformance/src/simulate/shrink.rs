//! Makes a run that goes wrong short.

use crate::explore::Finding;
use crate::world::{Choice, Job, Luck, Pid, SUPERVISOR};

use super::{Run, alike};

/// Leaves out of a run what its end does not need, as long as the same kind of thing goes wrong.
///
/// Gives the run as it is to be kept: exactly what happens when it is replayed. None: nothing goes
/// wrong in it.
#[must_use]
pub fn shrink(run: &Run) -> Option<(Run, Finding)> {
    let (mut run, found) = run.replay(&mut |_| {});
    let mut found = found?;
    // Handoffs first: what comes before the one that matters is most of a long run.
    let marks = |run: &Run| {
        let asked = |at: &usize| run.choices.get(*at) == Some(&Choice::Handoff);
        let mut marks: Vec<usize> = (0..run.choices.len()).filter(asked).collect();
        marks.insert(0, 0);
        marks.push(run.choices.len());
        marks
    };
    let mut width = marks(&run).len();
    while width > 0 {
        let mut at = 0;
        loop {
            let marks = marks(&run);
            let (Some(&from), Some(&to)) = (marks.get(at), marks.get(at + width)) else { break };
            if !leave_out(&mut run, &mut found, from, to) {
                at += 1;
            }
        }
        width /= 2;
    }
    // Then ever smaller pieces, until no single choice can be spared.
    let mut size = run.choices.len();
    while size > 0 {
        let mut smaller = false;
        let mut end = run.choices.len();
        while end > 0 {
            let from = end.saturating_sub(size);
            smaller |= leave_out(&mut run, &mut found, from, end);
            end = from.min(run.choices.len());
        }
        if size > 1 || !smaller {
            size /= 2;
        }
    }
    Some((run, found))
}

/// Replays the run without these choices, and keeps it so if it is shorter and as wrong.
fn leave_out(run: &mut Run, found: &mut Finding, from: usize, to: usize) -> bool {
    let gone = &run.choices[from..to];
    let born = gone.iter().filter(|choice| {
        matches!(choice, Choice::Complete(SUPERVISOR, Job::Spawn { .. }, Luck::Good))
    });
    let born = Pid::try_from(born.count()).unwrap_or_default();
    // Those that are started later have lower pids then.
    let shifts = if born > 0 { vec![born, 0] } else { vec![0] };
    shifts.into_iter().any(|shift| {
        let kept = run.choices[..from].iter().copied();
        let rest = run.choices[to..].iter().map(|&choice| moved(choice, shift));
        let candidate = Run { choices: kept.chain(rest).collect(), ..run.clone() };
        let (replayed, wrong) = candidate.replay(&mut |_| {});
        match wrong {
            Some(wrong) if alike(&wrong, found) && replayed.choices.len() < run.choices.len() => {
                *run = replayed;
                *found = wrong;
                true
            }
            _ => false,
        }
    })
}

/// The same choice for the daemon that has a pid lower by `shift`.
fn moved(choice: Choice, shift: Pid) -> Choice {
    let of = |pid: Pid| if pid > SUPERVISOR + shift { pid - shift } else { pid };
    let job = |job: Job| match job {
        Job::Reap(pid) => Job::Reap(of(pid)),
        job => job,
    };
    match choice {
        Choice::Exited(pid) => Choice::Exited(of(pid)),
        Choice::Perform(pid, it, luck) => Choice::Perform(of(pid), job(it), luck),
        Choice::Complete(pid, it, luck) => Choice::Complete(of(pid), job(it), luck),
        Choice::Warm(pid) => Choice::Warm(of(pid)),
        Choice::Exit(pid) => Choice::Exit(of(pid)),
        Choice::Terminate(pid) => Choice::Terminate(of(pid)),
        Choice::Tick(pid) => Choice::Tick(of(pid)),
        Choice::Continue(pid) => Choice::Continue(of(pid)),
        Choice::Dawdle(pid) => Choice::Dawdle(of(pid)),
        Choice::Hang(pid) => Choice::Hang(of(pid)),
        Choice::Crash(pid) => Choice::Crash(of(pid)),
        Choice::Stop(pid) => Choice::Stop(of(pid)),
        Choice::Jump(pid) => Choice::Jump(of(pid)),
        Choice::Notice(pid) => Choice::Notice(of(pid)),
        Choice::Deliver { .. }
        | Choice::Chunk { .. }
        | Choice::Advance
        | Choice::Start
        | Choice::Handoff
        | Choice::Abort
        | Choice::Restart
        | Choice::Break { .. }
        | Choice::Fill
        | Choice::Room
        | Choice::Unlink
        | Choice::Stranger(_)
        | Choice::Speak(_) => choice,
    }
}
