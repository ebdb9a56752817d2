//! Histories, true and falsified.

use proptest::sample::Index;
use taskmarket::{
    Event, Message, Mutation, Recorded, ReleaseReason, Signature, Signed, Timestamp, Verified, replay,
};

use crate::reference::{Cause, Model, Say, Verdict};
use crate::steps::Tamper;
use crate::world::World;

/// The history comes to the record, from its JSON too, and so does each of its beginnings to some record.
pub(crate) fn check_replay(world: &World) {
    assert_eq!(replay(&world.history).unwrap(), world.record);
    let text = serde_json::to_string(&world.history).unwrap();
    let read: Vec<Recorded> = serde_json::from_str(&text).unwrap();
    assert_eq!(read, world.history);
    assert_eq!(replay(&read).unwrap(), world.record);
    let record = serde_json::to_string(&world.record).unwrap();
    assert_eq!(serde_json::from_str::<taskmarket::TaskRecord>(&record).unwrap(), world.record);
    let (model, open) = by_the_book(&world.history).unwrap();
    assert!(!open);
    assert_eq!((model.status, model.version), (world.record.status(), world.record.version));
    let half = world.history.len().div_ceil(2);
    assert_eq!(replay(&world.history[..half]).unwrap().version, half as u64);
}

/// A falsified history is refused, or lawful by the model too.
pub(crate) fn check_tampered(world: &World, tamper: &Tamper, index: Index, renumber: bool) {
    let mut history = world.history.clone();
    let position = index.index(history.len());
    let shift = |recorded: &mut Recorded, by: i64| {
        recorded.at = Timestamp::from_unix(recorded.at.unix().saturating_add_signed(by));
    };
    match tamper {
        Tamper::Drop => drop(history.remove(position)),
        Tamper::Duplicate => history.insert(position, history[position].clone()),
        Tamper::SwapWithNext => {
            let next = (position + 1).min(history.len() - 1);
            history.swap(position, next);
        }
        Tamper::Shift(by) => history[position..].iter_mut().for_each(|recorded| shift(recorded, *by)),
        Tamper::Retime(by) => shift(&mut history[position], *by),
        Tamper::Signature(byte) => {
            if !spoil_signature(&mut history[position].event, *byte) {
                return;
            }
        }
        Tamper::Field => change_field(&mut history[position].event),
        Tamper::Version => history[position].version += 1,
    }
    if renumber && !matches!(tamper, Tamper::Version) {
        history.iter_mut().zip(1..).for_each(|(recorded, version)| recorded.version = version);
    }
    let Ok(record) = replay(&history) else { return };
    let (model, open) = by_the_book(&history)
        .unwrap_or_else(|why| panic!("{tamper:?} at {position} passes: {why}\n{history:#?}"));
    assert!(open || model.status == record.status(), "{tamper:?} at {position}\n{history:#?}");
    assert!(!matches!(tamper, Tamper::Version | Tamper::Signature(_)), "{tamper:?} at {position} passes");
    let backwards = history.windows(2).any(|pair| pair[1].at < pair[0].at);
    assert!(!backwards, "time runs backwards");
}

/// Spoils an event's signature such that it stays well-formed, if it has one and that can be done.
fn spoil_signature(event: &mut Event, byte: usize) -> bool {
    fn spoil<M>(signed: &mut Signed<M>, byte: usize) -> bool {
        let mut bytes = *signed.signature.as_bytes();
        bytes[byte] ^= if byte == 64 { 27 ^ 28 } else { 1 };
        Signature::from_bytes(bytes).map(|spoilt| signed.signature = spoilt).is_ok()
    }
    match event {
        Event::Published { task, .. } => spoil(task, byte),
        Event::Accepted(signed) => spoil(signed, byte),
        Event::AttemptFailed(signed) => spoil(signed, byte),
        Event::Submitted(signed) => spoil(signed, byte),
        Event::Approved(signed) => spoil(signed, byte),
        Event::Disputed(signed) => spoil(signed, byte),
        Event::Resolved(signed) => spoil(signed, byte),
        Event::Cancelled(signed) => spoil(signed, byte),
        Event::LeaseLapsed
        | Event::Expired
        | Event::WindowClosed
        | Event::ArbiterTimedOut
        | Event::Released { .. }
        | Event::Unworkable
        | Event::Chain(_)
        | Event::ChainTime(_) => false,
    }
}

/// Changes something that an event says.
fn change_field(event: &mut Event) {
    match event {
        Event::Published { task, .. } => task.message.config.max_attempts += 1,
        Event::Accepted(signed) => signed.message.attempt += 1,
        Event::AttemptFailed(signed) => signed.message.message.push('!'),
        Event::Submitted(signed) => signed.message.result_hash = taskmarket::ContentHash::UNPINNED,
        Event::Approved(signed) => signed.message.issued_at = signed.message.issued_at.plus(1),
        Event::Disputed(signed) => signed.message.reason.clear(),
        Event::Resolved(signed) => signed.message.provider_bps = 0,
        Event::Cancelled(signed) => signed.message.issued_at = signed.message.issued_at.plus(1),
        Event::LeaseLapsed => *event = Event::Expired,
        Event::Expired => *event = Event::LeaseLapsed,
        Event::WindowClosed => *event = Event::ArbiterTimedOut,
        Event::ArbiterTimedOut => *event = Event::WindowClosed,
        Event::Released { attempt, reason } => {
            *attempt += 1;
            *reason = ReleaseReason::SessionLost;
        }
        Event::Unworkable => *event = Event::Expired,
        Event::Chain(fact) => fact.block += 1,
        Event::ChainTime(head) => head.block += 1,
    }
}

/// Follows a history by the model; says whether it came to something that the documents leave open.
fn by_the_book(history: &[Recorded]) -> Result<(Model, bool), String> {
    let (first, rest) = history.split_first().ok_or("empty")?;
    let Event::Published { task, domain } = &first.event else { return Err("no beginning".to_owned()) };
    let task = (**task).clone().verify(domain).map_err(|error| error.to_string())?;
    let id = task.digest();
    let mut model = Model::new(task.message().clone());
    if first.version != 1 || first.at >= model.task.deadline {
        return Err("wrong beginning".to_owned());
    }
    let mut last = first.at;
    for recorded in rest {
        let Recorded { version, at, event } = recorded;
        if *version != model.version + 1 || *at < last {
            return Err(format!("version {version} at {at} after {} at {last}", model.version));
        }
        last = *at;
        let now = at.unix();
        let wrong = |why: &str| Err(format!("event {version} ({}): {why}", event.name()));
        if matches!(event, Event::Chain(_) | Event::ChainTime(_)) {
            return wrong("no chain has a say");
        }
        let due = model.due(now);
        let by_time = match event {
            Event::LeaseLapsed => Some(Cause::LeaseOver),
            Event::Expired => Some(Cause::Deadline),
            Event::WindowClosed => Some(Cause::WindowEnd),
            Event::ArbiterTimedOut => Some(Cause::ArbiterEnd),
            _ => None,
        };
        if by_time != due {
            return wrong(&format!("time says {due:?}"));
        }
        if let Some(cause) = by_time {
            model.step(cause);
        } else if let Event::Released { attempt, .. } = event {
            if !model.releases(*attempt) {
                return wrong("not held");
            }
            model.step(Cause::Released);
        } else if matches!(event, Event::Unworkable) {
            if !model.is_unworkable() {
                return wrong("nobody says that it fails anywhere");
            }
            model.step(Cause::Unworkable);
        } else {
            let mutation = spoken(event, domain)?;
            let say = Say::new(&mutation, id, *domain);
            match model.judge(now, &say) {
                Verdict::Applies => model.apply(now, say),
                verdict => return wrong(&format!("{verdict:?}")),
            }
        }
    }
    Ok((model, false))
}

/// The signed message that an event rests on.
fn spoken(event: &Event, domain: &taskmarket::Domain) -> Result<Mutation, String> {
    fn verified<M: Message>(signed: &Signed<M>, domain: &taskmarket::Domain) -> Result<Verified<M>, String> {
        signed.clone().verify(domain).map_err(|error| error.to_string())
    }
    Ok(match event {
        Event::Accepted(signed) => Mutation::Accept(verified(signed, domain)?),
        Event::AttemptFailed(signed) => Mutation::Fail(verified(signed, domain)?),
        Event::Submitted(signed) => Mutation::Proof(verified(signed, domain)?),
        Event::Approved(signed) => Mutation::Approve(verified(signed, domain)?),
        Event::Disputed(signed) => Mutation::Dispute(verified(signed, domain)?),
        Event::Resolved(signed) => Mutation::Resolve(verified(signed, domain)?),
        Event::Cancelled(signed) => Mutation::Cancel(verified(signed, domain)?),
        Event::Published { .. }
        | Event::LeaseLapsed
        | Event::Expired
        | Event::WindowClosed
        | Event::ArbiterTimedOut
        | Event::Released { .. }
        | Event::Unworkable
        | Event::Chain(_)
        | Event::ChainTime(_) => return Err("nobody signs this".to_owned()),
    })
}
