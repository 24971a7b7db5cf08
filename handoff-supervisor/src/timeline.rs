//! The timeline of a handoff as a picture.
//!
//! Each process has a lane, and time goes to the right. Where the stretch that clients notice is too short
//! to be seen in the whole, it is drawn a second time, larger.

use std::fmt::Write as _;

use crate::admin::{Ended, Span, Timeline};

/// The size of the picture, and where the lanes begin and end in it. What is to the right of them has room
/// for the label of an event.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 116.0;
const RIGHT: f64 = 826.0;
/// How high a lane of a daemon is, that of the clients, and a row of labels.
const LANE: f64 = 46.0;
const CLIENTS: f64 = 72.0;
const ROW: f64 = 16.0;
/// How wide a character of the small font is, about.
const CHAR: f64 = 6.1;
/// How many characters of an event are shown, and how many rows of them.
const LABEL: usize = 27;
const ROWS: usize = 8;
/// How many characters there are in a line of the heading.
const HEADING: usize = 130;
/// A part that takes less than this share of the whole is drawn once more.
const SMALL: f64 = 0.25;
/// The shortest stretch that is drawn, in microseconds.
const SHORTEST: u64 = 10;

const STYLE: &str = "\
text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#24292f}\
.title{font-size:18px;font-weight:600}.heading{font-size:13px;font-weight:600}\
.small{font-size:11px;fill:#57606a}.in{font-size:11px}\
.lane{fill:#f6f8fa}.grid{stroke:#d8dee4;stroke-width:1}.serves{fill:#ddf4e4}\
.nobody{fill:#ffd8d3}.waiting{fill:#cf222e;fill-opacity:.25;stroke:#cf222e;stroke-width:1.5}\
.mark{fill:#24292f}.lead{stroke:#8c959f;stroke-width:1}.gap{fill:#a40e26}";

/// An SVG: who did what when, and where clients waited. Needs nothing but itself.
#[must_use]
pub(crate) fn svg(ended: &Ended) -> String {
    let picture = Picture::of(ended);
    let mut body = String::new();
    let mut y = picture.heading(&mut body);
    let whole = (0, picture.end);
    match picture.detail() {
        Some(detail) => {
            y = picture.panel(&mut body, y, whole, Some(detail));
            y = picture.panel(&mut body, y + 22.0, detail, None);
        }
        None => y = picture.panel(&mut body, y, whole, None),
    }
    let height = picture.legend(&mut body, y + 8.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n{body}</svg>\n",
        escaped(&picture.title())
    )
}

/// In whose lane a phase is: who works in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    Old,
    New,
}

fn lane(phase: &str) -> Lane {
    match phase {
        "drain" | "seal" | "rollback" => Lane::Old,
        _ => Lane::New,
    }
}

fn colour(phase: &str) -> &'static str {
    match phase {
        "warm" => "#9ecbff",
        "drain" => "#f9d77e",
        "seal" => "#f2a65a",
        "open" => "#a5d99c",
        "commit" => "#5cb87a",
        "rollback" => "#d7aefb",
        "promote" => "#e6a0c4",
        _ => "#c9d1d9",
    }
}

/// What is drawn, made sane: nothing begins or ends after the end.
struct Picture<'a> {
    ended: &'a Ended,
    phases: Vec<Span>,
    events: Vec<(u64, String)>,
    waiting: Vec<(u64, u32)>,
    end: u64,
    /// When nobody accepted.
    gap: Option<(u64, u64)>,
}

impl<'a> Picture<'a> {
    fn of(ended: &'a Ended) -> Self {
        let Timeline { phases, events, waiting, end_us } = &ended.timeline;
        let last = phases.iter().map(|phase| phase.to_us).max().unwrap_or(0);
        let end = last.max(*end_us).max(SHORTEST);
        let sane = |phase: &Span| {
            let from_us = phase.from_us.min(end);
            Span { from_us, to_us: phase.to_us.clamp(from_us, end), ..phase.clone() }
        };
        let phases: Vec<Span> = phases.iter().map(sane).collect();
        let mut events: Vec<_> =
            events.iter().map(|(at, text)| (end.min(*at), text.clone())).collect();
        events.sort_by_key(|(at, _)| *at);
        let mut waiting: Vec<_> =
            waiting.iter().map(|(at, count)| (end.min(*at), *count)).collect();
        waiting.sort_by_key(|(at, _)| *at);
        let gap = gap(&phases, end, ended.entry.unavailable_ms);
        Self { ended, phases, events, waiting, end, gap }
    }

    fn title(&self) -> String {
        let entry = &self.ended.entry;
        let verdict = match entry.verdict.as_deref() {
            Some("rolled_back") => "rolled back",
            Some("dry_run") => "dry run",
            Some(verdict) => verdict,
            None => "outcome unknown",
        };
        let id = entry.id.as_deref().unwrap_or("without an id");
        format!("Handoff {id}: {verdict}, {}", span(self.end))
    }

    /// The stretch from the drain on, if it is too short to be seen in the whole.
    fn detail(&self) -> Option<(u64, u64)> {
        let first = self.phases.iter().find(|phase| phase.phase != "warm")?.from_us;
        let last = self.phases.iter().map(|phase| phase.to_us).max()?;
        let margin = ((last - first) / 25).max(SHORTEST / 2);
        let part = (first.saturating_sub(margin), last.saturating_add(margin).min(self.end));
        let share = (part.1 - part.0) as f64 / self.end as f64;
        (share < SMALL && self.phases.len() > 1).then_some(part)
    }

    fn heading(&self, svg: &mut String) -> f64 {
        let entry = &self.ended.entry;
        text(svg, 20.0, 32.0, "title", &self.title());
        let mut y = 32.0;
        let mut line = |content: &str| {
            y += 19.0;
            text(svg, 20.0, y, "", &shortened(content, HEADING));
        };
        if let Some(binary) = &entry.binary {
            line(&format!("to {}", binary.display()));
        }
        if let Some(code) = &entry.code {
            let detail = entry.detail.as_deref().map(|detail| format!(": {detail}"));
            line(&format!("{code}{}", detail.unwrap_or_default()));
        }
        if let Some(ms) = entry.unavailable_ms {
            let most = self.waiting.iter().map(|(_, count)| *count).max().unwrap_or(0);
            let gap =
                if ms == 0 { "less than 1 ms".to_owned() } else { span(ms.saturating_mul(1000)) };
            let waited = match most {
                0 => "no connection was seen to wait".to_owned(),
                1 => "at most 1 connection waited".to_owned(),
                most => format!("at most {most} connections waited"),
            };
            line(&format!("nobody accepted for {gap}; {waited}"));
        }
        y + 22.0
    }

    /// The lanes from one moment to another, below `y`; returns where they end. What is in `larger` has no
    /// labels here, because it is drawn again.
    fn panel(&self, svg: &mut String, y: f64, view: (u64, u64), larger: Option<(u64, u64)>) -> f64 {
        let (from, to) = view;
        let scale = (RIGHT - LEFT) / (to - from).max(1) as f64;
        let x = |at: u64| LEFT + (at.clamp(from, to) - from) as f64 * scale;
        let seen = |at: &u64| (from..=to).contains(at);
        let mut y = y;
        if from > 0 || to < self.end {
            let what = format!("Enlarged: from {} on, {}", span(from), span(to - from));
            text(svg, 20.0, y, "heading", &what);
            y += 12.0;
        }

        let shown =
            |at: &u64| seen(at) && !larger.is_some_and(|(from, to)| (from..=to).contains(at));
        let labelled = self.events.iter().filter(|(at, _)| shown(at));
        let labels = labels(labelled.map(|(at, text)| (x(*at), shortened(text, LABEL))).collect());
        let rows = labels.iter().filter_map(|label| label.row).max().map_or(0, |most| most + 1);
        let supervisor = (rows as f64 * ROW + 22.0).max(LANE);

        let lanes = [
            ("supervisor", supervisor),
            ("old daemon", LANE),
            ("new daemon", LANE),
            ("clients", CLIENTS),
        ];
        let mut tops = [y; 4];
        let mut bottom = y;
        for ((name, height), top) in lanes.iter().zip(&mut tops) {
            *top = bottom;
            rect(svg, "lane", (LEFT, RIGHT), (bottom, bottom + height - 4.0), "");
            text(svg, 20.0, bottom + 20.0, "", name);
            bottom += height;
        }
        self.axis(svg, view, (y, bottom - 4.0));
        if let Some((zoom_from, zoom_to)) = larger {
            // At least so wide that it is seen.
            let (left, right) = (x(zoom_from), x(zoom_to).max(x(zoom_from) + 2.0));
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" \
                 stroke=\"#57606a\" stroke-dasharray=\"3 2\"/>",
                right - left,
                bottom - 4.0 - y
            );
        }
        self.daemons(svg, view, &x, [tops[1], tops[2]]);
        self.clients(svg, view, &x, tops[3]);

        let base = tops[0] + 10.0;
        for label in &labels {
            let Some(row) = label.row else { continue };
            let baseline = base + (row + 1) as f64 * ROW;
            let _ = writeln!(
                svg,
                "<path class=\"lead\" d=\"M{0:.1} {base:.1}V{1:.1}\"/>",
                label.x, baseline
            );
            text(svg, label.x + 4.0, baseline, "small", &label.text);
        }
        for (at, told) in self.events.iter().filter(|(at, _)| seen(at)) {
            let _ = writeln!(
                svg,
                "<circle class=\"mark\" cx=\"{:.1}\" cy=\"{base:.1}\" r=\"3\"><title>{}: {}</title></circle>",
                x(*at),
                span(*at),
                escaped(told)
            );
        }
        bottom + 18.0
    }

    /// Lines and times, in steps that people count in.
    fn axis(&self, svg: &mut String, (from, to): (u64, u64), (top, bottom): (f64, f64)) {
        let all = (to - from).max(1);
        let step = step(all);
        let scale = (RIGHT - LEFT) / all as f64;
        for at in (0..=all / step).map(|place| place * step) {
            let x = LEFT + at as f64 * scale;
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>");
            let _ = writeln!(
                svg,
                "<text class=\"small\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}{}</text>",
                bottom + 14.0,
                if from > 0 && at > 0 { "+" } else { "" },
                tick(at, all)
            );
        }
    }

    fn daemons(&self, svg: &mut String, view: (u64, u64), x: &impl Fn(u64) -> f64, tops: [f64; 2]) {
        for (lane, from, to) in self.serves() {
            let top = tops[usize::from(lane == Lane::New)];
            if to > view.0 && from < view.1 && to > from {
                let (left, right) = (x(from), x(to));
                rect(svg, "serves", (left, right), (top, top + LANE - 4.0), "");
                if right - left > 60.0 {
                    text(svg, left + 6.0, top + LANE - 10.0, "small", "serves");
                }
            }
        }
        for phase in &self.phases {
            if phase.to_us < view.0 || phase.from_us > view.1 {
                continue;
            }
            let top = tops[usize::from(lane(&phase.phase) == Lane::New)];
            let left = x(phase.from_us);
            let right = x(phase.to_us).max(left + 2.0);
            let took = span(phase.to_us - phase.from_us);
            let fill = format!(" fill=\"{}\"", colour(&phase.phase));
            let both = format!("{} {took}", phase.phase);
            let _ = write!(svg, "<g><title>{}</title>", escaped(&both));
            rect(svg, "", (left, right), (top + 5.0, top + 25.0), &fill);
            let fits = |text: &&String| text.chars().count() as f64 * CHAR + 8.0 < right - left;
            if let Some(inside) = [&both, &phase.phase].into_iter().find(fits) {
                text(svg, left + 5.0, top + 19.0, "in", inside);
            }
            svg.push_str("</g>\n");
        }
    }

    /// Who serves when, as far as this is known.
    fn serves(&self) -> Vec<(Lane, u64, u64)> {
        let verdict = self.ended.entry.verdict.as_deref();
        let phase = |name: &str| self.phases.iter().find(|phase| phase.phase == name);
        let (stops, again) = match (self.gap, phase("drain")) {
            (Some((from, to)), _) => (from, Some(to)),
            (None, Some(drain)) => (drain.from_us, phase("open").map(|open| open.to_us)),
            (None, None) if matches!(verdict, None | Some("unknown")) => return Vec::new(),
            (None, None) => (self.end, None),
        };
        let whose = match verdict {
            Some("committed") => Some(Lane::New),
            Some("rolled_back") if self.gap.is_some() => Some(Lane::Old),
            _ => None,
        };
        let later = whose.zip(again).map(|(lane, again)| (lane, again, self.end));
        std::iter::once((Lane::Old, 0, stops)).chain(later).collect()
    }

    fn clients(&self, svg: &mut String, view: (u64, u64), x: &impl Fn(u64) -> f64, top: f64) {
        let bottom = top + CLIENTS - 4.0;
        if let Some((from, to)) = self.gap.filter(|(from, to)| *to >= view.0 && *from <= view.1) {
            let left = x(from);
            let right = x(to).max(left + 2.0);
            rect(svg, "nobody", (left, right), (top, bottom), "");
            let said = format!("nobody accepts, {}", span(to - from));
            let wide = said.chars().count() as f64 * CHAR + 8.0;
            // Beside it where it is too narrow.
            let at = if wide < right - left || right + wide > WIDTH { left } else { right };
            text(svg, at + 5.0, top + 14.0, "small gap", &said);
        }
        let most = self.waiting.iter().map(|(_, count)| *count).max().unwrap_or(0);
        if most == 0 {
            return;
        }
        // The line stays below the words.
        let height = |count: u32| bottom - f64::from(count) / f64::from(most) * (CLIENTS - 28.0);
        let before = self.waiting.iter().take_while(|(at, _)| *at <= view.0).last();
        let mut level = before.map_or(0, |(_, count)| *count);
        let mut path = format!("M{:.1} {bottom:.1}V{:.1}", x(view.0), height(level));
        for (at, count) in steps(&self.waiting, view, x) {
            if count != level {
                let _ = write!(path, "H{at:.1}V{:.1}", height(count));
                level = count;
            }
        }
        let _ =
            writeln!(svg, "<path class=\"waiting\" d=\"{path}H{:.1}V{bottom:.1}Z\"/>", x(view.1));
        text(svg, 20.0, top + 38.0, "small", &format!("up to {most} wait"));
    }

    /// What the colours mean, with the time each phase took; returns the height of the picture.
    fn legend(&self, svg: &mut String, y: f64) -> f64 {
        let (mut x, mut y) = (20.0, y + 14.0);
        for phase in &self.phases {
            let took = span(phase.to_us - phase.from_us);
            let said = format!("{} {took}", phase.phase);
            let wide = said.chars().count() as f64 * 7.0 + 38.0;
            if x + wide > WIDTH - 20.0 {
                (x, y) = (20.0, y + 22.0);
            }
            let fill = format!(" fill=\"{}\"", colour(&phase.phase));
            rect(svg, "", (x, x + 13.0), (y - 11.0, y + 2.0), &fill);
            text(svg, x + 19.0, y, "", &said);
            x += wide;
        }
        y + 20.0
    }
}

/// When nobody accepted: up to the moment when somebody did again, for as long as was measured.
fn gap(phases: &[Span], end: u64, unavailable_ms: Option<u64>) -> Option<(u64, u64)> {
    let us = unavailable_ms?.saturating_mul(1000);
    let again = |name: &str| phases.iter().rfind(|phase| phase.phase == name);
    let to = again("rollback").or(again("open")).map_or(end, |phase| phase.to_us);
    let drained =
        phases.iter().find(|phase| phase.phase == "drain").map_or(0, |phase| phase.from_us);
    let from = to.saturating_sub(us).max(drained.min(to));
    (from < to).then_some((from, to))
}

/// The samples in view, one for each half pixel: the highest of it.
fn steps(waiting: &[(u64, u32)], view: (u64, u64), x: impl Fn(u64) -> f64) -> Vec<(f64, u32)> {
    let mut steps: Vec<(f64, u32)> = Vec::new();
    for (at, count) in waiting.iter().filter(|(at, _)| *at > view.0 && *at <= view.1) {
        let at = (x(*at) * 2.0).round() / 2.0;
        match steps.last_mut() {
            Some(last) if last.0 == at && last.1 >= *count => {}
            Some(last) if last.0 == at => last.1 = *count,
            _ => steps.push((at, *count)),
        }
    }
    steps
}

/// The label of an event, and in which row below its mark, if there is room.
struct Label {
    x: f64,
    text: String,
    row: Option<usize>,
}

/// Gives rows to labels, such that neither a label nor the line to its mark crosses another label: each is
/// below those that begin above it.
fn labels(events: Vec<(f64, String)>) -> Vec<Label> {
    let mut placed: Vec<Label> = Vec::new();
    for (x, text) in events.into_iter().rev() {
        let end = x + text.chars().count() as f64 * CHAR + 10.0;
        let above = placed.iter().filter(|label| label.x < end).filter_map(|label| label.row).max();
        let row = above.map_or(0, |row| row + 1);
        placed.push(Label { x, text, row: (row < ROWS).then_some(row) });
    }
    placed
}

/// A step of 1, 2 or 5 times a power of ten, of which about eight make the whole.
fn step(all: u64) -> u64 {
    let mut power = 1;
    loop {
        for step in [1, 2, 5].map(|factor| factor * power) {
            if all / step <= 8 || power >= u64::MAX / 100 {
                return step;
            }
        }
        power *= 10;
    }
}

/// A time on the axis, in the unit that fits all of them.
fn tick(at: u64, all: u64) -> String {
    let (unit, name) = match all {
        2_000_000.. => (1_000_000, "s"),
        2_000.. => (1_000, "ms"),
        _ => (1, "µs"),
    };
    let number = format!("{:.3}", at as f64 / f64::from(unit));
    format!("{} {name}", number.trim_end_matches('0').trim_end_matches('.'))
}

/// A duration in microseconds, with about three digits.
fn span(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.2} s", us as f64 / 1e6),
        _ => format!("{:.0} s", us as f64 / 1e6),
    }
}

fn rect(
    svg: &mut String,
    class: &str,
    (left, right): (f64, f64),
    (top, bottom): (f64, f64),
    more: &str,
) {
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"{more}/>",
        right - left,
        bottom - top
    );
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, content: &str) {
    let content = escaped(content);
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>");
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// Text as XML has it. What XML cannot have is a blank.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            char if char.is_control() || matches!(char, '\u{fffe}' | '\u{ffff}') => {
                escaped.push(' ')
            }
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Entry;

    /// A handoff whose phases end at these moments.
    fn handoff(verdict: &str, phases: &[(&str, u64)], unavailable_ms: u64) -> Ended {
        let mut from_us = 0;
        let spans = phases.iter().map(|(phase, to_us)| {
            let span = Span { phase: (*phase).to_owned(), from_us, to_us: *to_us };
            from_us = *to_us;
            span
        });
        let phases: Vec<Span> = spans.collect();
        let end_us = from_us;
        let entry = Entry {
            kind: "swap".into(),
            id: Some("0f8e2a6c-4b7c-4e0a-9d61-5f0e1c2d3b4a".into()),
            verdict: Some(verdict.into()),
            binary: Some("/opt/kv/releases/1.5.0/bin/kv".into()),
            took_ms: Some(end_us / 1000),
            unavailable_ms: Some(unavailable_ms),
            ..Entry::default()
        };
        Ended {
            entry,
            timeline: Timeline { phases, end_us, ..Timeline::default() },
            ..Ended::default()
        }
    }

    /// Connections that come every so often and wait until the gap has ended.
    fn with_clients(mut ended: Ended, every_us: u64) -> Ended {
        let gap = Picture::of(&ended).gap.unwrap();
        let mut waiting = vec![(0, 0)];
        waiting.extend((gap.0..gap.1).step_by(every_us as usize).zip(1..));
        waiting.extend([(gap.1, 3), (gap.1 + every_us, 0)]);
        ended.timeline.waiting = waiting;
        ended
    }

    fn with_events(mut ended: Ended, events: &[(u64, &str)]) -> Ended {
        ended.timeline.events = events.iter().map(|(at, text)| (*at, (*text).to_owned())).collect();
        ended
    }

    fn short() -> Ended {
        let phases = [
            ("warm", 9_000),
            ("drain", 10_500),
            ("seal", 13_000),
            ("open", 18_200),
            ("commit", 20_000),
        ];
        let events = [
            (0, "started pid 4711"),
            (9_000, "the successor said Hello"),
            (9_200, "Prepare sent"),
            (10_500, "drained, 3 connections still open"),
            (13_000, "sealed, 32 shards"),
            (13_100, "Begin sent"),
            (18_200, "ready"),
            (18_300, "Commit sent"),
            (20_000, "the control path leads to pid 4711"),
        ];
        with_clients(with_events(handoff("committed", &phases, 9), &events), 700)
    }

    fn long() -> Ended {
        let second = 1_000_000;
        let phases = [
            ("warm", 52 * second),
            ("drain", 52 * second + 310_000),
            ("seal", 52 * second + 420_000),
            ("open", 52 * second + 560_000),
            ("commit", 52 * second + 562_000),
        ];
        let events = [
            (1_000, "started pid 4711"),
            (20 * second, "a probe finds pid 42"),
            (52 * second, "the successor said Hello"),
            (52 * second + 310_000, "drained, 0 connections still open"),
            (52 * second + 420_000, "sealed"),
            (52 * second + 560_000, "ready"),
            (52 * second + 562_000, "committed"),
        ];
        with_clients(with_events(handoff("committed", &phases, 250), &events), 9_000)
    }

    fn rolled_back() -> Ended {
        let second = 1_000_000;
        let phases = [
            ("warm", 2 * second),
            ("drain", 12 * second),
            ("seal", 14 * second),
            ("open", 59 * second),
            ("rollback", 60 * second),
        ];
        let events = [
            (2 * second, "the successor said Hello"),
            (12 * second, "drained, 3 connections still open"),
            (14 * second, "sealed, <32> shards & \"more\""),
            (58 * second, "shard 3 of 32 & <more>"),
            (59 * second, "the successor exited with 3"),
            (60 * second, "pid 42 serves again"),
        ];
        let mut ended = handoff("rolled_back", &phases, 48_000);
        ended.entry.code = Some("successor_exited".into());
        ended.entry.detail =
            Some("the successor (pid 4711) ended with exit code 3 after Begin".into());
        with_clients(with_events(ended, &events), 400_000)
    }

    /// Every handoff there is a picture of in these tests; `HANDOFF_PICTURES` names a directory to look at
    /// them in.
    #[test]
    fn pictures_are_well_formed_and_need_nothing_else() {
        let empty = Ended::default();
        let refused = handoff("refused", &[("warm", 800)], 0);
        let endless = handoff("unknown", &[("warm", 9), ("drain", u64::MAX)], u64::MAX);
        let all = [
            ("short", short()),
            ("long", long()),
            ("rolled-back", rolled_back()),
            ("empty", empty),
            ("refused", refused),
            ("endless", endless),
        ];
        for (name, ended) in all {
            let svg = svg(&ended);
            if let Some(directory) = std::env::var_os("HANDOFF_PICTURES") {
                std::fs::write(std::path::Path::new(&directory).join(format!("{name}.svg")), &svg)
                    .unwrap();
            }
            for never in ["NaN", "inf", "<script", "href", "@import", "width=\"-", "height=\"-"] {
                assert!(!svg.contains(never), "{name}: {never}");
            }
            let (opened, closed) = (svg.matches("<text").count(), svg.matches("</text>").count());
            assert_eq!(opened, closed, "{name}");
        }
    }

    #[test]
    fn what_others_wrote_is_text() {
        let svg = svg(&rolled_back());
        assert!(svg.contains("shard 3 of 32 &amp; &lt;more&gt;"), "{svg}");
        assert_eq!(escaped("\u{1b}[1m'\"\u{ffff}"), " [1m&#39;&quot; ");
    }

    #[test]
    fn what_clients_notice_is_drawn_larger_where_it_is_short() {
        assert_eq!(Picture::of(&short()).detail(), None);
        let (from, to) = Picture::of(&long()).detail().unwrap();
        assert!((51_900_000..52_000_000).contains(&from) && to == 52_562_000, "{from} {to}");
        assert!(svg(&long()).contains(">Enlarged: from "));
    }

    #[test]
    fn nobody_accepts_until_somebody_does_again() {
        assert_eq!(Picture::of(&short()).gap, Some((9_200, 18_200)));
        assert_eq!(Picture::of(&rolled_back()).gap, Some((12_000_000, 60_000_000)));
        // No longer than since the drain began.
        let phases = [Span { phase: "drain".into(), from_us: 500, to_us: 900 }];
        assert_eq!(gap(&phases, 1_000, Some(7)), Some((500, 1_000)));
        assert_eq!(gap(&phases, 1_000, None), None);
    }

    #[test]
    fn labels_and_their_lines_cross_no_label() {
        let events = [0.0, 10.0, 40.0, 300.0, 300.0, 420.0].map(|x| (x, "drained".to_owned()));
        let labels = labels(events.to_vec());
        for one in &labels {
            let (row, end) = (one.row.unwrap(), one.x + 7.0 * CHAR);
            let inside = labels.iter().filter(|other| other.x > one.x && other.x < end);
            assert!(inside.clone().all(|other| other.row.unwrap() < row));
        }
        let many = super::labels(vec![(5.0, "x".to_owned()); 20]);
        assert_eq!(many.iter().filter(|label| label.row.is_some()).count(), ROWS);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!([7, 20_000, 60_000_000, u64::MAX / 2].map(step)[..3], [1, 5_000, 10_000_000]);
        assert_eq!(tick(0, 20_000), "0 ms");
        assert_eq!(tick(2_500, 20_000), "2.5 ms");
        assert_eq!(tick(10_000_000, 60_000_000), "10 s");
    }
}
