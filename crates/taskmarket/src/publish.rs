//! What a task must be to be taken in.

use crate::decide::{
    MAX_ATTEMPTS, MAX_DEADLINE_SECS, MAX_DURATION_SECS, MAX_GPU_COUNT, MAX_GPU_NAME_BYTES, MAX_WINDOW_SECS,
    Rejection, invalid, is_gpu_name,
};
use crate::eip712::Verified;
use crate::event::found;
use crate::messages::Task;
use crate::params::Params;
use crate::primitives::{Amount, Reference, Timestamp};
use crate::record::TaskRecord;

/// Takes a new task in.
///
/// # Errors
/// [`Rejection::Invalid`] naming the first field that is out of bounds.
pub fn publish(now: Timestamp, task: &Verified<Task>) -> Result<TaskRecord, Rejection> {
    let message = task.message();
    check_config(message)?;
    check_times(now, message)?;
    if task.domain().is_settled() {
        check_settled(message)?;
    } else {
        check_unsettled(message)?;
    }
    Ok(found(task, now))
}

fn check_config(task: &Task) -> Result<(), Rejection> {
    let config = &task.config;
    if let Err(error) = Params::parse(config.runtime, &config.params) {
        return Err(invalid("config.params", error.to_string()));
    }
    if !is_gpu_name(&config.gpu_type) {
        return Err(invalid("config.gpu_type", format!("at most {MAX_GPU_NAME_BYTES} printable bytes")));
    }
    if config.gpu_count > MAX_GPU_COUNT {
        return Err(invalid("config.gpu_count", format!("at most {MAX_GPU_COUNT}")));
    }
    if config.gpu_count == 0 && (!config.gpu_type.is_empty() || config.min_vram > 0) {
        return Err(invalid("config.gpu_count", "zero, though gpu_type or min_vram asks for a GPU"));
    }
    if config.max_duration == 0 || config.max_duration > MAX_DURATION_SECS {
        return Err(invalid("config.max_duration", format!("1 to {MAX_DURATION_SECS} seconds")));
    }
    if config.max_attempts == 0 || config.max_attempts > MAX_ATTEMPTS {
        return Err(invalid("config.max_attempts", format!("1 to {MAX_ATTEMPTS}")));
    }
    Ok(())
}

fn check_times(now: Timestamp, task: &Task) -> Result<(), Rejection> {
    if task.deadline <= now {
        return Err(invalid("deadline", format!("{} has passed; it is {now}", task.deadline)));
    }
    if task.deadline > now.plus(MAX_DEADLINE_SECS) {
        return Err(invalid("deadline", format!("at most {MAX_DEADLINE_SECS} seconds from now")));
    }
    for (field, window) in [("dispute_window", task.dispute_window), ("arbiter_window", task.arbiter_window)]
    {
        if window > MAX_WINDOW_SECS {
            return Err(invalid(field, format!("at most {MAX_WINDOW_SECS} seconds")));
        }
    }
    Ok(())
}

fn check_unsettled(task: &Task) -> Result<(), Rejection> {
    if !task.token.is_zero() {
        return Err(invalid("token", "must be zero: no contract holds the money of an unsettled task"));
    }
    for (field, amount) in [("provider_stake", task.provider_stake), ("dispute_bond", task.dispute_bond)] {
        if amount != Amount::ZERO {
            return Err(invalid(field, "must be zero: no contract holds the money of an unsettled task"));
        }
    }
    Ok(())
}

fn check_settled(task: &Task) -> Result<(), Rejection> {
    let unpinned = |hash: &crate::ContentHash, reference: &Reference| {
        !hash.is_pinned() && !reference.is_content_addressed()
    };
    if unpinned(&task.model_hash, &task.model_cid) {
        return Err(invalid(
            "model_hash",
            "a settled task pins its model, by hash or by a CID or digest reference",
        ));
    }
    if unpinned(&task.input_hash, &task.input_cid) {
        return Err(invalid(
            "input_hash",
            "a settled task pins its input, by hash or by a CID or digest reference",
        ));
    }
    if task.arbiter.is_zero() != (task.dispute_window == 0) {
        return Err(invalid("arbiter", "arbiter and dispute_window are both zero or both set"));
    }
    if !task.arbiter.is_zero() {
        if task.arbiter == task.requester {
            return Err(invalid("arbiter", "is the requester"));
        }
        if task.arbiter_window == 0 {
            return Err(invalid(
                "arbiter_window",
                "zero: every dispute would end without the arbiter's word",
            ));
        }
    }
    let half = task.budget.half_up();
    for (field, amount) in [("provider_stake", task.provider_stake), ("dispute_bond", task.dispute_bond)] {
        if !task.arbiter.is_zero() && amount < half {
            return Err(invalid(field, "at least half the budget where there is an arbiter"));
        }
    }
    Ok(())
}
