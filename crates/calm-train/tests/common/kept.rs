//! What a run kept, without the times of the clock: two runs that trained the same hold the same.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use calm_run::Stage;
use calm_run::checkpoint::{Checkpoints, StageState};
use calm_run::metrics::read_lines;

/// The values of the metrics that the clock decides.
const BY_THE_CLOCK: [&str; 2] = ["train/tokens_per_second", "train/data_wait"];

/// By stage and step: parameters and optimiser to the byte, state without its seconds.
type Saved = BTreeMap<(Stage, u64), (Vec<u8>, Vec<u8>, StageState)>;

/// What a run kept.
#[derive(Debug, PartialEq)]
pub struct Kept {
    /// Its checkpoints.
    pub checkpoints: Saved,
    /// The lines of `metrics.jsonl` that count, without their times.
    pub metrics: Vec<String>,
    /// What TensorBoard shows, without times.
    pub events: Vec<String>,
    /// `results.json` to the byte.
    pub results: String,
}

impl Kept {
    /// Of a run's folder; what is not there is empty.
    pub fn of(run: &Path) -> Self {
        let mut checkpoints = BTreeMap::new();
        for stage in Stage::ALL {
            let all = Checkpoints::new(&run.join(stage.name()));
            for step in all.steps() {
                let file = |name: &str| fs::read(all.path(step).join(name)).unwrap_or_default();
                let state = StageState { seconds: 0.0, ..all.state(step).unwrap() };
                let files = (file("model.safetensors"), file("optimizer.safetensors"), state);
                checkpoints.insert((stage, step), files);
            }
        }
        let lines = read_lines(&run.join("metrics.jsonl")).unwrap_or_default();
        let metrics = lines
            .into_iter()
            .map(|mut line| {
                line.values.retain(|name, _| !BY_THE_CLOCK.contains(&name.as_str()));
                format!("{} {} {:?}", line.stage, line.step, line.values)
            })
            .collect();
        let events = Stage::ALL
            .iter()
            .flat_map(|stage| {
                let shown = events(&run.join("tensorboard").join(stage.name()));
                shown.into_iter().map(move |event| format!("{stage} {event}"))
            })
            .collect();
        Self {
            checkpoints,
            metrics,
            events,
            results: fs::read_to_string(run.join("results.json")).unwrap_or_default(),
        }
    }

    /// Where this differs from another, in words; None if nowhere.
    pub fn differs(&self, other: &Self) -> Option<String> {
        let steps = |kept: &Self| kept.checkpoints.keys().copied().collect::<Vec<_>>();
        let many = |kept: &Self| kept.checkpoints.len();
        let different = || Some(format!("checkpoints {:?} and {:?}", steps(self), steps(other)));
        if many(self) != many(other) {
            return different();
        }
        for (key, (model, optimizer, state)) in &self.checkpoints {
            let Some((m, o, s)) = other.checkpoints.get(key) else {
                // Where the best is the latest the one before stays too, and that may be the one of a stop.
                let latest = self.checkpoints.iter().rfind(|(other, _)| other.0 == key.0);
                if latest.is_none_or(|((_, step), (.., l))| {
                    *step == key.1 || l.best.is_some_and(|b| b.step == key.1)
                }) {
                    return different();
                }
                continue;
            };
            if m != model || o != optimizer || s != state {
                return Some(format!(
                    "checkpoint {key:?}: model {}, optimiser {}, state {state:?} and {s:?}",
                    m == model,
                    o == optimizer
                ));
            }
        }
        for (what, a, b) in
            [("metrics", &self.metrics, &other.metrics), ("events", &self.events, &other.events)]
        {
            if a != b {
                let at = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                return Some(format!("{what} from {at}: {:?} and {:?}", a.get(at), b.get(at)));
            }
        }
        (self.results != other.results).then(|| format!("results {} and {}", self.results, other.results))
    }
}

/// What TensorBoard shows of a folder: it reads the files by their names, each up to a record that was cut off, and
/// drops what a session's start says is stale.
fn events(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut shown: Vec<(u64, String)> = Vec::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        let mut rest = bytes.as_slice();
        while rest.len() >= 12 {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            if rest.len() < length.saturating_add(16) {
                break;
            }
            read_event(&rest[12..12 + length], &mut shown);
            rest = &rest[16 + length..];
        }
    }
    shown.into_iter().map(|(step, text)| format!("{step} {text}")).collect()
}

fn read_event(event: &[u8], shown: &mut Vec<(u64, String)>) {
    let fields = fields(event);
    let step = fields.iter().find(|f| f.0 == 2).map_or(0, |f| number(&f.1));
    if fields.iter().any(|f| f.0 == 7) {
        shown.retain(|(at, _)| *at < step);
    }
    for (_, summary) in fields.iter().filter(|f| f.0 == 5) {
        for (_, value) in self::fields(summary) {
            let value = self::fields(&value);
            let tag = value.iter().find(|f| f.0 == 1).map(|f| String::from_utf8_lossy(&f.1).into_owned());
            let tag = tag.unwrap_or_default();
            if !BY_THE_CLOCK.contains(&tag.as_str()) {
                let rest: Vec<_> = value.iter().filter(|f| f.0 != 1).collect();
                shown.push((step, format!("{tag} {rest:?}")));
            }
        }
    }
}

fn number(payload: &[u8]) -> u64 {
    payload.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Fields of a protobuf message: number and payload (numbers as little-endian bytes).
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = data.split_first() else { return value };
            *data = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut list = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let payload = match key & 7 {
            0 => varint(&mut data).to_le_bytes().to_vec(),
            kind => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut data) as usize,
                };
                let (payload, rest) = data.split_at(length.min(data.len()));
                data = rest;
                payload.to_vec()
            }
        };
        list.push((key >> 3, payload));
    }
    list
}
