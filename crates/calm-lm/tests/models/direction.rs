//! What positions see of a document whose first part is input, by the direction of attention.

use crate::common::*;
use crate::gradients::assert_all_learn;
use calm_config::Problems;
use calm_lm::{
    BackboneConfig, Baseline, BaselineConfig, ChunkBatch, Direction, FamilyConfig, LanguageModel, MixedHeads,
    ModelConfig, Sampler, TokenDecoding,
};
use calm_nn::Noise;
use candle_core::{Device, IndexOp, Tensor};

fn config(attention: Direction) -> BackboneConfig {
    BackboneConfig { attention, heads: 4, layers: 3, ..backbone() }
}

/// A model that is far from its start.
fn model(attention: Direction) -> Baseline {
    let (store, model) = baseline(&config(attention), true);
    randomise(&store, 0.3);
    model
}

/// One row of documents of `lengths`, of each of which the first `input` tokens are input.
fn row(ids: &[u32], lengths: &[usize], input: usize) -> ChunkBatch {
    let positions: Vec<u32> = lengths.iter().flat_map(|n| 0..*n as u32).collect();
    let segments: Vec<u32> = (0..).zip(lengths).flat_map(|(i, n)| vec![i; *n]).collect();
    let inputs: Vec<bool> = positions.iter().map(|p| (*p as usize) < input).collect();
    let ends = |at: usize| at + 1 == segments.len() || segments[at] != segments[at + 1];
    let predicts: Vec<bool> = (0..segments.len()).map(|at| !ends(at) && !inputs[at + 1]).collect();
    ChunkBatch::new((1, ids.len(), 1), ids, &positions, &segments, &predicts, &[0], &Device::Cpu)
        .unwrap()
        .with_inputs(Some(inputs))
        .unwrap()
}

/// The streams `[S][D]` that leave the last layer.
fn states(model: &Baseline, batch: &ChunkBatch) -> Vec<Vec<f32>> {
    let streams = model.hidden_streams(batch).unwrap().unwrap();
    streams.last().unwrap().i(0).unwrap().to_vec2().unwrap()
}

const LENGTHS: [usize; 2] = [9, 6];
const INPUT: usize = 4;

#[test]
fn nothing_sees_the_output_before_it_is_written() {
    let ids = tokens(15, 1);
    for attention in [Direction::Causal].into_iter().chain(directions()) {
        let model = model(attention);
        let before = states(&model, &row(&ids, &LENGTHS, INPUT));
        for u in 0..ids.len() {
            let mut other = ids.clone();
            other[u] = (other[u] + 1) % 12;
            let after = states(&model, &row(&other, &LENGTHS, INPUT));
            let (begin, end) = if u < LENGTHS[0] { (0, LENGTHS[0]) } else { (LENGTHS[0], 15) };
            let in_input = u - begin < INPUT;
            let changed = |t: usize| before[t] != after[t];
            assert!(changed(u), "{attention:?}: {u}");
            for t in 0..ids.len() {
                let possible = (begin..end).contains(&t) && (t >= u || (in_input && t - begin < INPUT));
                assert!(!changed(t) || possible, "{attention:?}: {t} sees {u}");
                // Both ways the whole input is seen by each of its positions.
                if attention == Direction::Prefix {
                    assert_eq!(changed(t), possible, "{t} and {u}");
                }
            }
            if in_input && u > begin && attention != Direction::Causal {
                assert!(changed(begin), "{attention:?}: the first position sees {u} of the input");
            }
            if in_input {
                assert!((begin + INPUT..end).all(changed), "{attention:?}: the output sees {u} of the input");
            }
        }
    }
}

#[test]
fn without_an_input_every_direction_is_causal() {
    let ids = tokens(15, 2);
    let want = states(&model(Direction::Causal), &row(&ids, &LENGTHS, INPUT));
    for attention in directions() {
        let model = model(attention);
        for input in [0, 1] {
            let got = states(&model, &row(&ids, &LENGTHS, input));
            assert!(got == want, "{attention:?} with {input} positions of input");
        }
        let all = row(&ids, &LENGTHS, INPUT).with_inputs(None).unwrap();
        assert!(states(&model, &all) == want, "{attention:?} where all text counts");
        assert!(states(&model, &row(&ids, &LENGTHS, INPUT)) != want, "{attention:?}");
    }
    let forward = Direction::Mixed(MixedHeads { forward: 4, backward: 0 });
    assert!(states(&model(forward), &row(&ids, &LENGTHS, INPUT)) == want, "all heads look forward");
}

#[test]
fn every_parameter_learns_and_recomputing_changes_nothing() {
    let ids = tokens(15, 3);
    for attention in directions() {
        let (store, mut model) = baseline(&config(attention), true);
        randomise(&store, 0.3);
        let batch = row(&ids, &LENGTHS, INPUT);
        let loss = |model: &Baseline| {
            let noise = Noise::Keyed { seed: 3, purpose: "t", step: 0, rows: &batch.rows };
            model.loss(&batch, &noise).unwrap().sum
        };
        assert_all_learn(&store, |_| loss(&model));
        let kept: f32 = loss(&model).to_scalar().unwrap();
        model.set_recompute(true);
        let again: f32 = loss(&model).to_scalar().unwrap();
        assert_eq!(kept, again);
    }
}

/// The most probable token after `text`, of which the first `input` tokens are input.
fn teacher_forced(model: &Baseline, text: &[u32], input: usize) -> u32 {
    let ids = [&[SPECIAL.bos], text, &[0]].concat();
    let batch = row(&ids, &[ids.len()], input + 1);
    let logits = model.logits(&model.hidden(&batch).unwrap()).unwrap();
    let last: Vec<f32> = logits.i(logits.dim(0).unwrap() - 1).unwrap().to_vec1().unwrap();
    (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32
}

#[test]
fn a_text_is_continued_as_it_is_scored_with_the_prompt_as_its_input() {
    let cold = TokenDecoding { temperature: 0.0, top_p: 1.0 };
    let key = calm_lm::DrawKey { seed: 1, call: 0 };
    for attention in directions() {
        let model = model(attention);
        let sampler: Box<dyn Sampler> = model.tempered_sampler(cold).unwrap();
        for input in [0, 1, 6] {
            let said = tokens(10, 4 + input as u32);
            let mut text = sampler.start().unwrap();
            let mut beside = sampler.side_by_side(2).unwrap();
            beside.begin(1).unwrap();
            text.push(&said[..input]).unwrap();
            beside.push(&[(1, &said[..input])]).unwrap();
            for n in input..said.len() {
                let want = teacher_forced(&model, &said[..n], input);
                let drawn = text.draw(1, key).unwrap();
                assert_eq!(drawn, [[want]], "{attention:?}: {input} of input, after {n}");
                let text_key = calm_lm::TextKey { seed: 1, text: 0, call: n as u32 };
                assert_eq!(beside.pool(1, 1, text_key).unwrap(), [[want]], "{attention:?}: side by side");
                text.push(&said[n..=n]).unwrap();
                beside.push(&[(1, &said[n..=n])]).unwrap();
            }
        }
    }
}

#[test]
fn settings_say_the_direction_and_are_silent_about_the_usual_one() {
    let read = |json: &str| serde_json::from_str::<ModelConfig>(json).unwrap();
    let plain = serde_json::to_string(&read(r#"{ "baseline": {} }"#)).unwrap();
    assert!(!plain.contains("attention"), "{plain}");
    for said in [r#""prefix""#, r#""alternate""#, r#"{"mixed":{"forward":2,"backward":2}}"#] {
        let model = read(&format!(r#"{{ "baseline": {{ "backbone": {{ "attention": {said} }} }} }}"#));
        assert!(serde_json::to_string(&model).unwrap().contains(&format!(r#""attention":{said}"#)));
        assert!(model.published().is_none(), "a published Llama looks forward");
    }
}

#[test]
fn what_cannot_look_in_another_direction_says_so() {
    let found = |json: &str| {
        let model: ModelConfig = serde_json::from_str(json).unwrap();
        let mut problems = Problems::new();
        model.validate(&mut problems);
        problems.paths()
    };
    let baseline = |a: &str| format!(r#"{{ "baseline": {{ "backbone": {{ "attention": {a} }} }} }}"#);
    assert_eq!(
        found(&baseline(r#"{ "mixed": { "forward": 1, "backward": 1 } }"#)),
        ["backbone.attention.mixed"]
    );
    for part in ["tokens", "concepts"] {
        let json = format!(r#"{{ "dlcm": {{ "{part}": {{ "attention": "prefix" }} }} }}"#);
        assert_eq!(found(&json), [format!("{part}.attention")]);
    }
    // The decoder inside a chunk goes forward whatever the backbone does.
    assert!(found(r#"{ "patch": { "chunk_size": 4, "backbone": { "attention": "prefix" } } }"#).is_empty());
    let settings = BaselineConfig { backbone: config(Direction::Prefix) };
    assert!(settings.published().is_none());
    assert!(model(Direction::Prefix).coding().is_none() && model(Direction::Causal).coding().is_some());
}

#[test]
fn chunks_are_predicted_and_drawn_in_every_direction() {
    let ids = tokens(2 * 8 * 4, 9);
    let positions: Vec<u32> = (0..16).map(|at| at % 8).collect();
    let predicts: Vec<bool> = positions.iter().map(|p| (2..7).contains(p)).collect();
    let inputs: Vec<bool> = positions.iter().map(|p| *p < 3).collect();
    let batch = ChunkBatch::new((2, 8, 4), &ids, &positions, &[0; 16], &predicts, &[0, 1], &Device::Cpu)
        .unwrap()
        .with_inputs(Some(inputs))
        .unwrap();
    let request = calm_lm::DrawRequest { samples: 3, steps: 1, seed: 1, purpose: "t" };
    for attention in directions() {
        let backbone = config(attention);
        let (store, model) = calm(4, &backbone, true);
        randomise(&store, 0.3);
        let noise = Noise::Keyed { seed: 3, purpose: "t", step: 0, rows: &batch.rows };
        assert_all_learn(&store, |step| {
            let noise = Noise::Keyed { seed: 3, purpose: "t", step, rows: &batch.rows };
            model.loss(&batch, &noise).unwrap().sum
        });
        let loss: Tensor = model.loss(&batch, &noise).unwrap().sum;
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
        model.draw(&batch, &request).unwrap();
    }
}

#[test]
fn marks_of_another_number_of_positions_are_refused() {
    let e = row(&tokens(6, 1), &[6], 2).with_inputs(Some(vec![true; 5])).unwrap_err().to_string();
    assert!(e.contains("5 marks") && e.contains("6 positions"), "{e}");
}
