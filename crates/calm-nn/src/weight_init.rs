//! The setting of how the weights of a model start.

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::{Display, Formatter};

use crate::Init;

/// How matrices and tables start: `fan_in` or `{normal: STD}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightInit {
    /// Normal with a standard deviation of 1/sqrt(fan-in) in each matrix, 1/sqrt(D) in a table of embeddings: what a
    /// layer gives out is as large as what it takes in, at any width.
    FanIn,
    /// Normal with one standard deviation everywhere; the reference has 0.02.
    Normal(f64),
}

impl WeightInit {
    /// That of the reference implementation.
    pub const REFERENCE: Self = Self::Normal(0.02);

    /// What is wrong with it, if anything.
    pub fn problem(self) -> Option<String> {
        match self {
            Self::Normal(std) if !(std > 0.0 && std.is_finite()) => {
                Some(format!("has a standard deviation of {std}: must be above 0"))
            }
            _ => None,
        }
    }

    /// The same for matrices that are `width` times as wide as those that it was chosen for: the variance falls with the
    /// width, which that of `fan_in` does by itself.
    #[must_use]
    pub fn at_scale(self, width: f64) -> Self {
        match self {
            Self::FanIn => Self::FanIn,
            Self::Normal(std) => Self::Normal(std / width.sqrt()),
        }
    }

    /// The standard deviation in a matrix that takes `width` numbers.
    pub fn std(self, width: usize) -> f64 {
        match self {
            Self::Normal(std) => std,
            Self::FanIn => (width as f64).sqrt().recip(),
        }
    }
}

impl From<WeightInit> for Init {
    fn from(init: WeightInit) -> Self {
        match init {
            WeightInit::FanIn => Self::FanIn,
            WeightInit::Normal(std) => Self::Normal(std),
        }
    }
}

impl Display for WeightInit {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FanIn => f.write_str("fan_in"),
            Self::Normal(std) => write!(f, "{{normal: {std}}}"),
        }
    }
}

/// A number alone is that of `normal`: runs of version 0.1 have it, under the key `init_std`.
impl<'de> Deserialize<'de> for WeightInit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Written {
            FanIn,
            Normal(f64),
        }
        impl From<Written> for WeightInit {
            fn from(written: Written) -> Self {
                match written {
                    Written::FanIn => Self::FanIn,
                    Written::Normal(std) => Self::Normal(std),
                }
            }
        }
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = WeightInit;

            fn expecting(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
                f.write_str("`fan_in`, or a standard deviation as `{normal: 0.02}`")
            }

            fn visit_f64<E: Error>(self, std: f64) -> Result<WeightInit, E> {
                Ok(WeightInit::Normal(std))
            }

            fn visit_u64<E: Error>(self, std: u64) -> Result<WeightInit, E> {
                Ok(WeightInit::Normal(std as f64))
            }

            fn visit_i64<E: Error>(self, std: i64) -> Result<WeightInit, E> {
                Ok(WeightInit::Normal(std as f64))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<WeightInit, E> {
                Written::deserialize(name.into_deserializer()).map(Into::into)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WeightInit, A::Error> {
                Written::deserialize(MapAccessDeserializer::new(map)).map(Into::into)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written_and_as_a_number() {
        let read = |json: &str| serde_json::from_str::<WeightInit>(json);
        for init in [WeightInit::FanIn, WeightInit::Normal(0.12), WeightInit::REFERENCE] {
            assert_eq!(read(&serde_json::to_string(&init).unwrap()).unwrap(), init);
        }
        assert_eq!(read("0.02").unwrap(), WeightInit::REFERENCE);
        assert_eq!(read("1").unwrap(), WeightInit::Normal(1.0));
        for (wrong, says) in [("\"fanin\"", "fan_in"), ("{\"uniform\": 1}", "normal"), ("true", "fan_in")] {
            let e = read(wrong).unwrap_err().to_string();
            assert!(e.contains(says), "{wrong}: {e}");
        }
        assert_eq!(WeightInit::Normal(0.12).at_scale(1.0), WeightInit::Normal(0.12));
        assert_eq!(WeightInit::Normal(0.12).at_scale(4.0), WeightInit::Normal(0.06));
        assert_eq!(WeightInit::FanIn.at_scale(4.0), WeightInit::FanIn);
        assert!(WeightInit::Normal(0.0).problem().is_some() && WeightInit::FanIn.problem().is_none());
    }
}
