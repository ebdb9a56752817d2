//! Why a host does not get a task, in words for people.

use std::fmt;

use taskmarket::Runtime;

/// Why a host does not get a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclusion {
    /// The task is not offered to this provider.
    NotOffered,
    /// The host takes no tasks now.
    NotAccepting,
    /// It does not have the runtime.
    Runtime {
        /// The task's.
        wanted: Runtime,
    },
    /// None of its engines serves the model.
    NotServed {
        /// The model's name.
        model: String,
    },
    /// None of its devices is a GPU of the type.
    NoGpu {
        /// The type, empty for any.
        wanted: String,
    },
    /// It has such GPUs, but not as many.
    TooFewGpus {
        /// As many as the task wants.
        wanted: u32,
        /// As many as it has.
        found: u32,
    },
    /// It has enough such GPUs, but not enough with the memory.
    TooLittleVram {
        /// What each must have, in MiB.
        wanted_mb: u64,
        /// What the largest of them has, in MiB.
        largest_mb: u64,
        /// How many have enough.
        fitting: u32,
        /// How many the task wants.
        wanted: u32,
    },
    /// All slots are in use.
    NoFreeSlot {
        /// How many slots it has.
        slots: u32,
    },
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered => f.write_str("is not offered this task again"),
            Self::NotAccepting => f.write_str("takes no tasks now"),
            Self::Runtime { wanted } => write!(f, "does not run {wanted} tasks"),
            Self::NotServed { model } => write!(f, "no engine of it serves {model}"),
            Self::NoGpu { wanted } if wanted.is_empty() => f.write_str("has no GPU"),
            Self::NoGpu { wanted } => write!(f, "has no GPU named {wanted}"),
            Self::TooFewGpus { wanted, found } => write!(f, "has {found} of {wanted} such GPUs"),
            Self::TooLittleVram { wanted_mb, largest_mb, fitting: 0, .. } => {
                write!(f, "has {largest_mb} MiB of GPU memory, {wanted_mb} are needed")
            }
            Self::TooLittleVram { wanted_mb, fitting, wanted, .. } => {
                write!(f, "has {wanted_mb} MiB of memory on {fitting} of {wanted} GPUs")
            }
            Self::NoFreeSlot { slots } => write!(f, "0 of {slots} slots free"),
        }
    }
}
