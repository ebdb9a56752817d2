//! How a device is doing.

use serde::{Deserialize, Serialize};

/// From here on a GPU that does not name a limit of its own is too hot, in degrees Celsius.
pub(crate) const HOT_C: u32 = 90;

/// How a device is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Health {
    /// Nothing speaks against it.
    Ok,
    /// It works, but results may be slow or wrong.
    Degraded {
        /// Why, for the operator.
        reason: String,
    },
    /// It does not work.
    Failed {
        /// Why, for the operator.
        reason: String,
    },
}

impl Health {
    /// Whether it works at all, well or badly: what runs there may go on.
    pub fn is_usable(&self) -> bool {
        match self {
            Self::Ok | Self::Degraded { .. } => true,
            Self::Failed { .. } => false,
        }
    }

    /// Whether it may be offered to new tasks: only while nothing speaks against it.
    pub fn is_offerable(&self) -> bool {
        *self == Self::Ok
    }

    /// What speaks against it.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Degraded { reason } | Self::Failed { reason } => Some(reason),
        }
    }

    /// The worse of the two; of two equally bad ones the first.
    pub(crate) fn worse(self, other: Self) -> Self {
        let badness = |health: &Self| match health {
            Self::Ok => 0,
            Self::Degraded { .. } => 1,
            Self::Failed { .. } => 2,
        };
        if badness(&other) > badness(&self) { other } else { self }
    }
}

/// Too hot from `limit_c` on. It follows the temperature both ways: a GPU that has cooled down is well again.
pub(crate) fn heat(temperature_c: Option<u32>, limit_c: u32) -> Health {
    match temperature_c {
        Some(now) if now >= limit_c => {
            Health::Degraded { reason: format!("too hot: {now} °C; its limit is {limit_c} °C") }
        }
        _ => Health::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_is_kept_and_the_first_of_equals() {
        let degraded = |reason: &str| Health::Degraded { reason: reason.into() };
        let failed = Health::Failed { reason: "lost".into() };
        assert_eq!(Health::Ok.worse(degraded("hot")), degraded("hot"));
        assert_eq!(degraded("hot").worse(Health::Ok), degraded("hot"));
        assert_eq!(degraded("hot").worse(degraded("old")), degraded("hot"));
        assert_eq!(degraded("hot").worse(failed.clone()), failed);
        assert_eq!(failed.clone().worse(degraded("hot")), failed);
    }

    #[test]
    fn heat_comes_and_goes() {
        assert_eq!(heat(Some(89), HOT_C), Health::Ok);
        assert!(!heat(Some(90), HOT_C).is_offerable());
        assert_eq!(heat(Some(60), HOT_C), Health::Ok);
        assert_eq!(heat(None, HOT_C), Health::Ok);
    }
}
