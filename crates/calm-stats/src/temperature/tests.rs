use super::*;
use crate::rng::Stream;

type Error = TemperatureError<String>;

fn at(t: f64) -> Temperature {
    Temperature::new::<String>(t).unwrap()
}

fn pool(text: &str) -> Vec<Chunk> {
    text.bytes().map(|b| vec![u32::from(b)]).collect()
}

#[test]
fn a_temperature_near_a_reciprocal_is_that_reciprocal() {
    for n in 1..=50 {
        let t = at(1.0 / f64::from(n));
        assert_eq!((t.whole(), t.rest(), t.reciprocal::<String>()), (n, 0.0, Ok(n)));
    }
    assert_eq!(at(1.0 / (2.0 + 1e-10)).reciprocal::<String>(), Ok(2));
    let t = at(0.7);
    assert_eq!((t.value(), t.whole()), (0.7, 1));
    assert!((t.rest() - 0.428_571_428).abs() < 1e-8);
    let error = t.reciprocal::<String>().unwrap_err();
    assert!(error.remedy().is_some_and(|r| r.contains("take 0.5000 or 1.0000")), "{error}");
}

#[test]
fn temperatures_outside_the_range_are_refused() {
    for t in [0.0, -1.0, 1.0001, f64::NAN, f64::INFINITY, 1e-12] {
        assert!(matches!(Temperature::new::<String>(t), Err(TemperatureError::Range(_))), "{t}");
    }
}

#[test]
fn counts_three_and_two_at_one_half_give_three_to_one() {
    let w = batch_weights(&pool("ABABA"), 2).unwrap();
    assert_eq!(w.level, 2);
    let found: Vec<_> = w.candidates.iter().map(|c| (c.chunk[0], c.count, c.weight, c.probability)).collect();
    assert_eq!(found, [(65, 3, 3.0, 0.75), (66, 2, 1.0, 0.25)]);
    assert_eq!((w.choose(0.0), w.choose(0.74), w.choose(0.76)), (vec![65], vec![65], vec![66]));
}

#[test]
fn the_cascade_stops_at_the_first_level_with_candidates() {
    let w = batch_weights(&pool("AABBC"), 5).unwrap();
    assert_eq!((w.level, w.candidates.len()), (2, 2));
    let w = batch_weights(&pool("ABC"), 5).unwrap();
    assert_eq!((w.level, w.candidates.len()), (1, 3));
    assert_eq!(batch_weights(&[], 2), None);
}

#[test]
fn weights_past_the_range_of_f64_still_give_probabilities() {
    let mut many = vec![vec![1]; 4000];
    many.extend(vec![vec![2]; 3999]);
    let w = batch_weights(&many, 2000).unwrap();
    assert!(w.candidates[0].weight.is_infinite());
    // C(4000, 2000) / C(3999, 2000) = 4000 / 2000.
    assert!((w.candidates[0].probability - 2.0 / 3.0).abs() < 1e-9);
    assert_eq!(binomial(60, 30), 118_264_581_564_861_424.0);
    assert_eq!((binomial(5, 0), binomial(5, 5), binomial(24, 12)), (1.0, 1.0, 2_704_156.0));
}

#[test]
fn at_temperature_one_the_exact_sampler_returns_the_first_draw() {
    let mut stream = Stream::new(1, "t", 0);
    let draw = |n: usize| Ok::<_, String>((0..n as u32).map(|i| vec![i + 7]).collect());
    let out = exact(at(1.0), &ExactOptions::default(), any, draw, &mut stream).unwrap();
    assert_eq!((out.chunk, out.draws, out.restarts, out.level), (vec![7], 1, 0, None));
}

#[test]
fn a_spent_budget_is_an_error_or_a_reported_fallback() {
    let mut stream = Stream::new(1, "t", 0);
    let mut next = 0;
    let mut draw = |n: usize| {
        next += n as u32;
        Ok::<_, String>((next - n as u32..next).map(|i| vec![i]).collect())
    };
    let options = ExactOptions { budget: 100, batch: 7, fallback: false };
    let error = exact(at(0.5), &options, any, &mut draw, &mut stream).unwrap_err();
    assert_eq!(error, TemperatureError::Budget { draws: 100, matched: 100 });
    let options = ExactOptions { fallback: true, ..options };
    let out = exact(at(0.5), &options, any, &mut draw, &mut stream).unwrap();
    assert!(out.fell_back && out.draws == 100 && out.level == Some(1));
    let error = exact(at(0.5), &options, |_| false, &mut draw, &mut stream).unwrap_err();
    assert_eq!(error, TemperatureError::NoMatch { draws: 100 });
    let none = ExactOptions { budget: 0, ..options };
    let error: Error = exact(at(0.5), &none, any, &mut draw, &mut stream).unwrap_err();
    assert_eq!(error, TemperatureError::NoMatch { draws: 0 });
}

#[test]
fn only_matching_candidates_are_chosen_and_the_rate_is_reported() {
    let mut stream = Stream::new(2, "t", 0);
    let mut random = Stream::new(3, "t", 0);
    let mut draw = |n: usize| {
        Ok::<_, String>((0..n).map(|_| vec![random.below(4) as u32, random.below(2) as u32]).collect())
    };
    let out = batch(at(0.5), 400, begins_with(&[3]), &mut draw, &mut stream).unwrap();
    assert!(out.chunk[0] == 3 && out.draws == 400 && (60..140).contains(&out.matched));
    assert!((out.match_rate() - out.matched as f64 / 400.0).abs() < 1e-12);
    let out = exact(at(0.7), &ExactOptions::default(), begins_with(&[2]), &mut draw, &mut stream);
    assert_eq!(out.unwrap().chunk[0], 2);
    let error = batch(at(0.5), 50, begins_with(&[9]), &mut draw, &mut stream).unwrap_err();
    assert_eq!(error, TemperatureError::NoMatch { draws: 50 });
}

#[test]
fn a_failing_or_empty_black_box_is_reported() {
    let mut stream = Stream::new(2, "t", 0);
    let broken = |_| Err("no power".to_string());
    let error = exact(at(1.0), &ExactOptions::default(), any, broken, &mut stream).unwrap_err();
    assert_eq!(error.to_string(), "drawing a chunk failed: no power");
    let error = batch(at(1.0), 3, any, broken, &mut stream).unwrap_err();
    assert_eq!(error, TemperatureError::Draw("no power".into()));
    let empty = |_| Ok::<_, String>(vec![]);
    let error = exact(at(1.0), &ExactOptions::default(), any, empty, &mut stream).unwrap_err();
    assert_eq!(error, TemperatureError::Empty(1));
    assert_eq!(batch(at(1.0), 3, any, empty, &mut stream), Err(TemperatureError::Empty(3)));
    let wrong = batch(at(0.7), 3, any, empty, &mut stream);
    assert!(matches!(wrong, Err(TemperatureError::NotReciprocal { .. })));
}
