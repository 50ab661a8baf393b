//! The compact form in which sums are kept: lists of numbers, a document a row.

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};

use super::{BrierSums, DocumentSum};

/// Document, positions, s1..s4.
type Row = (u64, u64, f64, f64, f64, f64);

impl DocumentSum {
    /// JSON would turn a number that is not finite into null, which cannot be read back.
    fn check_finite<E: serde::ser::Error>(&self) -> Result<(), E> {
        match self.sum.iter().find(|s| !s.is_finite()) {
            Some(s) => {
                Err(E::custom(format_args!("a sum of contributions is {s}, expected a finite number")))
            }
            None => Ok(()),
        }
    }
}

impl Serialize for DocumentSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.check_finite()?;
        let [a, b, c, d] = self.sum;
        (self.positions, a, b, c, d).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DocumentSum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (positions, a, b, c, d) = Deserialize::deserialize(deserializer)?;
        Ok(Self { sum: [a, b, c, d], positions })
    }
}

impl Serialize for BrierSums {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        for (document, sum) in self.iter() {
            sum.check_finite()
                .map_err(|e: S::Error| S::Error::custom(format!("document {document}: {e}")))?;
        }
        serializer.collect_seq(self.iter().map(
            |(document, &DocumentSum { sum: [a, b, c, d], positions })| {
                let row: Row = (document, positions, a, b, c, d);
                row
            },
        ))
    }
}

impl<'de> Deserialize<'de> for BrierSums {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut sums = Self::new();
        for (document, positions, a, b, c, d) in Vec::<Row>::deserialize(deserializer)? {
            if positions == 0 {
                return Err(D::Error::custom(format!("document {document} has no positions: leave it out")));
            }
            if sums.documents.insert(document, DocumentSum { sum: [a, b, c, d], positions }).is_some() {
                return Err(D::Error::custom(format!("document {document} is listed twice")));
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn sums_are_kept_as_rows_of_numbers() {
        let mut sums = BrierSums::new();
        sums.add(12, &[0.5, 0.25, 0.125, -0.125]);
        sums.add(3, &[1.0, 0.0, 0.0, 0.0]);
        sums.add(3, &[1.0, 0.5, 0.0, 0.0]);
        let json = serde_json::to_string(&sums).unwrap();
        assert_eq!(json, "[[3,2,2.0,0.5,0.0,0.0],[12,1,0.5,0.25,0.125,-0.125]]");
        assert_eq!(serde_json::from_str::<BrierSums>(&json).unwrap(), sums);
        let document = *sums.iter().next().unwrap().1;
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(json, "[2,2.0,0.5,0.0,0.0]");
        assert_eq!(serde_json::from_str::<DocumentSum>(&json).unwrap(), document);
    }

    #[test]
    fn reading_gives_back_every_digit() {
        let mut stream = Stream::new(1, "digits", 0);
        let mut sums = BrierSums::new();
        for _ in 0..20_000 {
            // Of any size: the reader's fast path is exact for short numbers only.
            let scale = 10f64.powi(stream.below(40) as i32 - 30);
            sums.add(stream.bits(), &[0; 4].map(|_| (stream.uniform() - 0.5) * scale));
        }
        let back: BrierSums = serde_json::from_str(&serde_json::to_string(&sums).unwrap()).unwrap();
        assert!(back == sums);
    }

    #[test]
    fn what_cannot_be_read_back_is_not_written_and_broken_rows_are_refused() {
        let mut sums = BrierSums::new();
        sums.add(7, &[0.0, f64::NAN, 0.0, 0.0]);
        let error = serde_json::to_string(&sums).unwrap_err().to_string();
        assert_eq!(error, "document 7: a sum of contributions is NaN, expected a finite number");
        let refusal = |json| serde_json::from_str::<BrierSums>(json).unwrap_err().to_string();
        assert!(refusal("[[7,0,0,0,0,0]]").contains("document 7 has no positions"));
        assert!(refusal("[[7,1,0,0,0,0],[7,1,0,0,0,0]]").contains("document 7 is listed twice"));
        assert!(refusal("[[7,1,0,0,0]]").contains("invalid length 5"));
        assert!(refusal("[[7,1,0,null,0,0]]").contains("null"));
    }
}
