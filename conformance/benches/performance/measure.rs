//! Contenders in turn, so that whatever else the machine does falls on all of them.

use std::time::{Duration, Instant};

/// How long a batch of calls takes, about: long beside the clock, short beside a scheduler's turn.
const BATCH: Duration = Duration::from_micros(150);

/// The median.
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// How long a call of each takes, in nanoseconds: the medians of `rounds` batches, in turn.
pub fn calls<const N: usize>(rounds: usize, mut contenders: [&mut dyn FnMut(); N]) -> [f64; N] {
    let sizes = std::array::from_fn::<_, N, _>(|it| size(contenders[it]));
    let mut times = [const { Vec::new() }; N];
    for round in 0..rounds {
        for turn in 0..N {
            let it = (round + turn) % N;
            let start = Instant::now();
            for _ in 0..sizes[it] {
                contenders[it]();
            }
            times[it].push(nanos(start.elapsed()) / f64::from(sizes[it]));
        }
    }
    times.map(median)
}

/// How many calls make a batch.
fn size(call: &mut dyn FnMut()) -> u32 {
    let mut size = 1;
    loop {
        let start = Instant::now();
        for _ in 0..size {
            call();
        }
        if start.elapsed() >= BATCH || size >= 1 << 20 {
            return size;
        }
        size *= 2;
    }
}

/// Rounds until there are `most`, or `budget` is used up and there are three.
pub struct Rounds {
    left: usize,
    done: usize,
    over: Instant,
}

impl Rounds {
    pub fn new(most: usize, budget: Duration) -> Self {
        Self { left: most, done: 0, over: Instant::now() + budget }
    }
}

impl Iterator for Rounds {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 || (self.done >= 3 && Instant::now() > self.over) {
            return None;
        }
        self.left -= 1;
        self.done += 1;
        Some(self.done - 1)
    }
}
