//! The control connections: who speaks, what it says, how it ends (C1, C5, C6, T2, T3, W7).

use super::*;

impl Incumbent {
    pub(super) fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.iter_mut().find(|conn| conn.id == id)
    }

    pub(super) fn opened(&mut self, now: Instant, id: ConnId, cred: Credentials, out: &mut Out) {
        if !self.answers() || self.conn(id).is_some() {
            return out.push(Output::Close { peer: id });
        }
        self.conns.push(Conn { id, stage: Stage::Unsettled, beats: false });
        if let Err(violation) = check_user(cred, self.config.uid, &self.config.allowed_uids) {
            return self.refuse(now, id, violation, out);
        }
        if self.conns.len() > CONNECTIONS {
            let silent = |conn: &&Conn| matches!(conn.stage, Stage::Unsettled | Stage::Greeted);
            let unprepared = |conn: &&Conn| !matches!(conn.stage, Stage::Prepared { .. });
            let others = &self.conns[..CONNECTIONS];
            let oldest = others.iter().find(silent).or_else(|| others.iter().find(unprepared));
            let oldest = oldest.map_or(id, |conn| conn.id);
            self.refuse(now, oldest, Violation::Crowded, out);
        }
        if self.settled() {
            self.greet(now, id, out);
        }
    }

    pub(super) fn greet(&mut self, now: Instant, id: ConnId, out: &mut Out) {
        let message = Message::Hello {
            role: Side::Incumbent,
            pid: self.config.pid,
            build_id: self.config.build_id.clone(),
            proto_min: self.config.proto_min,
            proto_max: self.config.proto_max,
            capabilities: Capabilities::OURS,
        };
        let limit = now + self.config.timing.hello_ack;
        if let Some(conn) = self.conn(id)
            && conn.stage == Stage::Unsettled
        {
            conn.stage = Stage::Greeted;
            self.timers.set(Timer::HelloAck(id), limit);
            out.push(Output::Send { to: id, message });
        }
    }

    pub(super) fn refuse(&mut self, now: Instant, id: ConnId, violation: Violation, out: &mut Out) {
        let state = self.state_name();
        out.push(Output::Event(Event::PeerRefused { conn: id, violation, state }));
        self.close(now, id, out);
    }

    pub(super) fn close(&mut self, now: Instant, id: ConnId, out: &mut Out) {
        out.push(Output::Close { peer: id });
        self.lost(now, id, out);
    }

    pub(super) fn lost(&mut self, now: Instant, id: ConnId, out: &mut Out) {
        self.conns.retain(|conn| conn.id != id);
        self.timers.retain(|timer| !timer.of(id));
        if let State::Handoff(handoff) = &mut self.state
            && handoff.conn == Some(id)
        {
            handoff.conn = None;
            let ready_by_now = self.config.timing.pulse.silence + self.config.timing.verdict;
            self.timers.set(Timer::Alone, now + ready_by_now + self.config.timing.end_grace);
            self.call_off(now, Off::SupervisorGone, out);
        }
    }

    pub(super) fn heard(&mut self, now: Instant, id: ConnId) {
        let limit = now + self.config.timing.pulse.silence;
        if self.conn(id).is_some_and(|conn| conn.beats) {
            self.timers.set(Timer::Silence(id), limit);
        }
    }

    pub(super) fn message(&mut self, now: Instant, from: ConnId, message: Message, out: &mut Out) {
        let Some(conn) = self.conn(from) else { return };
        let stage = conn.stage.clone();
        let name = short_name(&message);
        let unexpected = Violation::Unexpected { message: name, state: self.state_name() };
        let (id, prepared) = match stage {
            Stage::Unsettled => return self.refuse(now, from, unexpected, out),
            Stage::Greeted => return self.hello_ack(now, from, message, out),
            Stage::Acked { id } => (id, false),
            Stage::Prepared { id, .. } => (id, true),
        };
        if let Some(got) = message.handoff_id()
            && got != id
        {
            let violation = match (&self.state, &message) {
                (State::Handoff(active), Message::PrepareHandoff { .. }) => {
                    Violation::Busy { active: active.id }
                }
                _ => Violation::WrongId { message: name, got, expected: id },
            };
            return self.refuse(now, from, violation, out);
        }
        match message {
            Message::Heartbeat { ts_ms } => self.heartbeat(now, from, ts_ms, out),
            Message::PrepareHandoff { successor_pid, deadline_ms, drain_grace_ms, .. }
                if !prepared && self.last != Some(id) =>
            {
                let deadline = Duration::from_millis(deadline_ms);
                let grace = Duration::from_millis(drain_grace_ms).min(deadline);
                self.prepare(now, from, id, successor_pid, (deadline, grace), out);
            }
            Message::SealRequest { .. } if self.step_is(from, |s| matches!(s, Step::Drained)) => {
                if let State::Handoff(handoff) = &mut self.state {
                    handoff.step = Step::Sealing { off: None };
                    out.push(hook(Hook::Seal));
                }
            }
            Message::Commit { .. } => self.commit(now, from, unexpected, out),
            Message::Abort { .. } => self.aborted(now, from, false, out),
            Message::ResumeAfterAbort { .. } => self.aborted(now, from, true, out),
            Message::Hello { .. }
            | Message::HelloAck { .. }
            | Message::PrepareHandoff { .. }
            | Message::Drained { .. }
            | Message::SealRequest { .. }
            | Message::SealProgress { .. }
            | Message::SealComplete { .. }
            | Message::SealFailed { .. }
            | Message::Begin { .. }
            | Message::Ready { .. } => self.refuse(now, from, unexpected, out),
        }
    }

    pub(super) fn hello_ack(
        &mut self,
        now: Instant,
        from: ConnId,
        message: Message,
        out: &mut Out,
    ) {
        let Message::HelloAck { proto_version_chosen: chosen, handoff_id: id } = message else {
            let (message, state) = (short_name(&message), "awaiting HelloAck");
            return self.refuse(now, from, Violation::Unexpected { message, state }, out);
        };
        let (min, max) = (self.config.proto_min, self.config.proto_max);
        if !(min..=max).contains(&chosen) {
            return self.refuse(now, from, Violation::ChosenVersion { chosen, min, max }, out);
        }
        if let Some(conn) = self.conn(from) {
            conn.stage = Stage::Acked { id };
        }
        self.timers.clear(Timer::HelloAck(from));
        self.timers.set(Timer::Beat(from), now + self.config.timing.pulse.every);
        self.timers.set(Timer::Idle(from), now + self.config.timing.idle);
    }

    pub(super) fn heartbeat(&mut self, now: Instant, from: ConnId, ts_ms: u64, out: &mut Out) {
        let timing = self.config.timing;
        let Some(conn) = self.conn(from) else { return };
        conn.beats = true;
        if let Stage::Prepared { held: true, answer, .. } = &mut conn.stage {
            *answer = Some(ts_ms);
        } else {
            out.push(Output::Answer { to: from, ts_ms });
        }
        self.timers.set(Timer::Silence(from), now + timing.pulse.silence);
        if self.timers.at(Timer::Idle(from)).is_some() {
            self.timers.set(Timer::Idle(from), now + timing.idle);
        }
    }
}
