//! Sequence diagrams of a [`Trace`]: text for a terminal, Mermaid, SVG.

use std::fmt::Write;

use crate::world::{Death, Pid, SUPERVISOR};

use super::trace::{Mark, Trace};

/// How many columns of a terminal are used.
const WIDTH: usize = 80;

/// The lanes of a text diagram: daemons that are gone make room for others.
struct Lanes {
    names: Vec<Option<Pid>>,
    width: usize,
}

impl Lanes {
    fn of(trace: &Trace) -> Self {
        // As many as ever live at once.
        let mut alive = 1;
        let mut most = 2;
        for mark in &trace.marks {
            match mark {
                Mark::Born(_) => alive += 1,
                Mark::Died(pid, _) if *pid != SUPERVISOR => alive -= 1,
                _ => {}
            }
            most = most.max(alive);
        }
        let width = ((WIDTH - 2) / most).clamp(10, 26);
        let mut names = vec![None; most];
        names[0] = Some(SUPERVISOR);
        Self { names, width }
    }

    fn place(&self, pid: Pid) -> Option<usize> {
        self.names.iter().position(|it| *it == Some(pid))
    }

    fn enter(&mut self, pid: Pid) -> Option<usize> {
        let free = self.names.iter().position(Option::is_none)?;
        self.names[free] = Some(pid);
        Some(free)
    }

    fn column(&self, place: usize) -> usize {
        place * self.width + 1
    }

    /// A line with everybody's lifeline.
    fn lines(&self) -> Vec<char> {
        let mut line = vec![' '; WIDTH];
        for (place, name) in self.names.iter().enumerate() {
            if name.is_some() {
                put(&mut line, self.column(place), "│");
            }
        }
        line
    }
}

fn put(line: &mut [char], at: usize, text: &str) {
    for (cell, char) in line.iter_mut().skip(at).zip(text.chars()) {
        *cell = char;
    }
}

fn push(text: &mut String, line: &[char]) {
    text.push_str(line.iter().collect::<String>().trim_end());
    text.push('\n');
}

/// The diagram for a terminal of 80 columns.
#[must_use]
pub fn text(trace: &Trace) -> String {
    let mut lanes = Lanes::of(trace);
    let mut text = String::new();
    let mut head = vec![' '; WIDTH];
    put(&mut head, 1, "S");
    push(&mut text, &head);
    for mark in &trace.marks {
        let mut line = lanes.lines();
        match mark {
            Mark::Born(pid) => {
                if let Some(place) = lanes.enter(*pid) {
                    put(&mut line, lanes.column(place), trace.name(*pid));
                }
            }
            Mark::Died(pid, death) => {
                if let Some(place) = lanes.place(*pid) {
                    put(&mut line, lanes.column(place), &format!("X {}", how(*death)));
                    if *pid != SUPERVISOR {
                        lanes.names[place] = None;
                    }
                }
            }
            Mark::Said { from, to, what } => {
                let Some(to) = lanes.place(*to) else { continue };
                match from.and_then(|pid| lanes.place(pid)) {
                    Some(from) => arrow(&mut line, lanes.column(from), lanes.column(to), what),
                    None => {
                        put(&mut line, lanes.column(to), &format!("│◁ {what} of somebody's"));
                    }
                }
            }
            Mark::Did(pid, what) => {
                if let Some(place) = lanes.place(*pid) {
                    let room = if place + 1 == lanes.names.len() { WIDTH } else { lanes.width - 3 };
                    let what: String = what.chars().take(room).collect();
                    put(&mut line, lanes.column(place) + 2, &what);
                }
            }
            Mark::Fault(what) => banner(&mut line, &format!(" {what} "), '·'),
            Mark::Passed(time) => banner(&mut line, &format!(" {time:?} "), ' '),
            Mark::Wrong(what) => {
                push(&mut text, &line);
                text.push_str(" ! ");
                text.push_str(what);
                text.push('\n');
                continue;
            }
        }
        push(&mut text, &line);
    }
    text
}

/// Across all lanes.
fn banner(line: &mut [char], what: &str, fill: char) {
    let start = (WIDTH / 2).saturating_sub(what.chars().count() / 2);
    if fill != ' ' {
        for cell in line.iter_mut().filter(|cell| **cell == ' ') {
            *cell = fill;
        }
    }
    put(line, start, what);
}

fn arrow(line: &mut [char], from: usize, to: usize, what: &str) {
    let (left, right) = (from.min(to), from.max(to));
    for cell in &mut line[left + 1..right] {
        *cell = '─';
    }
    if from < to {
        line[right - 1] = '>';
    } else {
        line[left + 1] = '<';
    }
    // Next to the reader, so that what lies between is no obstacle.
    let room = right - left - 1;
    let label = format!(" {what} ");
    let length = label.chars().count();
    if length + 2 <= room {
        put(line, left + 1 + (room - length) / 2, &label);
    } else {
        put(line, left + 2, what);
    }
}

fn how(death: Death) -> String {
    match death {
        Death::Crashed => String::from("killed"),
        Death::Signalled => String::from("signalled"),
        Death::Exited(code) => format!("exits {code}"),
    }
}

/// The diagram as Mermaid's.
#[must_use]
pub fn mermaid(trace: &Trace) -> String {
    let mut text = String::from("sequenceDiagram\n");
    let id = |pid: Pid| if pid == SUPERVISOR { String::from("S") } else { format!("D{pid}") };
    let plain = |what: &str| what.replace([';', '#', '\n'], ",");
    // Writing to a String does not fail.
    for (pid, name) in &trace.lanes {
        let _ = writeln!(text, "    participant {} as {name}", id(*pid));
    }
    let first = trace.lanes.first().map_or(SUPERVISOR, |lane| lane.0);
    let last = trace.lanes.last().map_or(first, |lane| lane.0);
    let over = if first == last { id(first) } else { format!("{},{}", id(first), id(last)) };
    for mark in &trace.marks {
        let _ = match mark {
            Mark::Born(pid) => writeln!(text, "    Note over {}: starts", id(*pid)),
            Mark::Died(pid, death) => {
                writeln!(text, "    Note over {}: {}", id(*pid), how(*death))
            }
            Mark::Said { from: Some(from), to, what } => {
                writeln!(text, "    {}->>{}: {what}", id(*from), id(*to))
            }
            Mark::Said { from: None, to, what } => {
                writeln!(text, "    Note over {}: {what} of somebody's", id(*to))
            }
            Mark::Did(pid, what) => {
                writeln!(text, "    Note over {}: {}", id(*pid), plain(what))
            }
            Mark::Fault(what) => writeln!(text, "    Note over {over}: {}", plain(what)),
            Mark::Passed(time) => writeln!(text, "    Note over {over}: {time:?} pass"),
            Mark::Wrong(what) => writeln!(text, "    Note over {over}: WRONG: {}", plain(what)),
        };
    }
    text
}

/// The diagram as SVG.
#[must_use]
pub fn svg(trace: &Trace) -> String {
    const LANE: usize = 180;
    const ROW: usize = 22;
    const TOP: usize = 50;
    let x = |pid: Pid| {
        let place = trace.lanes.iter().position(|lane| lane.0 == pid);
        place.unwrap_or(0) * LANE + LANE / 2
    };
    let width = (trace.lanes.len() * LANE).max(3 * LANE);
    let height = TOP + ROW * (trace.marks.len() + 1);
    // A lane begins and ends with its process.
    let row = |place: usize| TOP + ROW * place;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <defs><marker id=\"a\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    // Writing to a String does not fail.
    for (pid, name) in &trace.lanes {
        let at = x(*pid);
        let born = trace.marks.iter().position(|mark| *mark == Mark::Born(*pid));
        let died =
            trace.marks.iter().rposition(|mark| matches!(mark, Mark::Died(it, _) if it == pid));
        let died = died.filter(|_| *pid != SUPERVISOR).unwrap_or(trace.marks.len());
        let (from, to) = (row(born.unwrap_or(0)), row(died));
        let _ = writeln!(
            text,
            "<line x1=\"{at}\" y1=\"{from}\" x2=\"{at}\" y2=\"{to}\" stroke=\"#999\"/>\n\
             <text x=\"{at}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"bold\">{}</text>",
            from - 10,
            escaped(name)
        );
    }
    for (place, mark) in trace.marks.iter().enumerate() {
        let y = row(place);
        let middle = width / 2;
        let (at, anchor, color, what) = match mark {
            Mark::Born(_) => continue,
            Mark::Said { from: Some(from), to, what } => {
                let (from, to) = (x(*from), x(*to));
                let _ = writeln!(
                    text,
                    "<line x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\" stroke=\"black\" \
                     marker-end=\"url(#a)\"/>"
                );
                let _ = writeln!(
                    text,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    usize::midpoint(from, to),
                    y - 3,
                    escaped(what)
                );
                continue;
            }
            Mark::Said { from: None, to, what } => {
                (x(*to) + 6, "start", "#555", format!("{what} of somebody's"))
            }
            Mark::Did(pid, what) => (x(*pid) + 6, "start", "#333", what.clone()),
            Mark::Died(pid, death) => (x(*pid), "middle", "#a00", how(*death)),
            Mark::Fault(what) => (middle, "middle", "#a00", what.clone()),
            Mark::Passed(time) => (middle, "middle", "#777", format!("{time:?} pass")),
            Mark::Wrong(what) => (middle, "middle", "#a00", format!("WRONG: {what}")),
        };
        let _ = writeln!(
            text,
            "<text x=\"{at}\" y=\"{}\" text-anchor=\"{anchor}\" fill=\"{color}\">{}</text>",
            y + 4,
            escaped(&what)
        );
    }
    text.push_str("</svg>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
