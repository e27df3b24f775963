//! Dims and dtypes in serialised data: as the text they print.

use crate::{DType, Dim};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Longer texts are no dims of ours; the parser recurses, and what it reads may be hostile. # Units: bytes.
const MAX_LEN: usize = 4096;

impl Serialize for Dim {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.len() > MAX_LEN {
            return Err(D::Error::custom(format!("a dim of {} bytes", text.len())));
        }
        text.parse().map_err(D::Error::custom)
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DType {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|()| D::Error::custom(format!("'{text}' is not a dtype")))
    }
}
