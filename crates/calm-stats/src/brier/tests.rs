use super::*;

const END: Option<EndOfText> = Some(EndOfText { eos: 90, pad: 91 });

fn close(a: [f64; 4], b: [f64; 4]) {
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} is not {b:?}");
}

#[test]
fn two_samples_give_the_papers_estimator() {
    let t = sample_terms(&[1, 2, 3, 4], &[[1, 2, 3, 9], [1, 2, 9, 4]], None).unwrap();
    close(t.accuracy, [1.0, 1.0, 0.5, 0.0]);
    close(t.collision, [1.0, 1.0, 0.0, 0.0]);
    close(t.brier(), [1.0, 1.0, 1.0, 0.0]);
}

#[test]
fn more_samples_average_over_all_samples_and_all_pairs() {
    let samples: [[u32; 5]; 5] =
        [[1, 2, 3, 4, 0], [1, 2, 3, 4, 1], [1, 2, 0, 0, 0], [7, 7, 7, 7, 7], [1, 5, 5, 5, 5]];
    let t = sample_terms(&[1, 2, 3, 4, 4], &samples, None).unwrap();
    close(t.accuracy, [0.8, 0.6, 0.4, 0.4]);
    close(t.collision, [6.0 / 10.0, 3.0 / 10.0, 0.1, 0.1]);
    // The same from all pairs by hand.
    for n in 1..=4 {
        let mut agree = 0.0;
        for i in 0..5 {
            for j in 0..i {
                agree += f64::from(samples[i][..n] == samples[j][..n]) / 10.0;
            }
        }
        assert!((t.collision[n - 1] - agree).abs() < 1e-12);
    }
}

#[test]
fn a_perfect_model_scores_one_and_a_wrong_sure_one_minus_one() {
    close(sample_terms(&[1, 2, 3, 4], &[[1, 2, 3, 4]; 3], None).unwrap().brier(), [1.0; 4]);
    close(sample_terms(&[1, 2, 3, 4], &[[0, 2, 3, 4]; 3], None).unwrap().brier(), [-1.0; 4]);
}

#[test]
fn everything_after_eos_is_pad_in_target_and_samples() {
    let t = sample_terms(&[1, 90, 5, 6], &[[1, 90, 7, 8], [1, 90, 9, 9]], END).unwrap();
    close(t.brier(), [1.0; 4]);
    // Without the rule the same tokens differ; a target or sample that has ended may stop.
    let t = sample_terms(&[1, 90, 5, 6], &[[1, 90, 7, 8], [1, 90, 9, 9]], None).unwrap();
    close(t.brier(), [1.0, 1.0, 0.0, 0.0]);
    close(sample_terms(&[1, 90], &[vec![1, 90], vec![1, 90, 0, 0]], END).unwrap().brier(), [1.0; 4]);
    let mut tokens = [3, 90, 4, 90, 5];
    END.unwrap().absorb(&mut tokens);
    assert_eq!(tokens, [3, 90, 91, 91, 91]);
}

#[test]
fn chains_may_stop_where_they_part_and_only_there() {
    let ok = terms(&[1, 2, 3, 4], &[[1, 2, 3, 4]], &[vec![1, 2], vec![1, 3], vec![4]], None).unwrap();
    close(ok.collision, [1.0 / 3.0, 0.0, 0.0, 0.0]);
    for chains in [vec![vec![1, 2], vec![1, 2, 3, 4]], vec![vec![1], vec![1]], vec![vec![], vec![1, 2]]] {
        let error = terms(&[1, 2, 3, 4], &[[1, 2, 3, 4]], &chains, None).unwrap_err();
        assert!(matches!(error, BrierError::ShortSample(_)), "{chains:?}: {error}");
    }
}

#[test]
fn too_little_is_an_error() {
    assert_eq!(sample_terms(&[1, 2, 3, 4], &[[1, 2, 3, 4]], None), Err(BrierError::TooFewSamples(1)));
    assert_eq!(sample_terms(&[1, 2, 3], &[[1, 2, 3, 4]; 2], None), Err(BrierError::ShortTarget(3)));
    assert_eq!(sample_terms(&[1, 2, 3, 4], &[[1, 2]; 2], None), Err(BrierError::ShortSample(2)));
    let none: [[u32; 4]; 0] = [];
    assert_eq!(terms(&[1, 2, 3, 4], &none, &[[1, 2, 3, 4]; 2], None), Err(BrierError::NoAccuracySample));
}

#[test]
fn roll_outs_include_the_last_start_and_the_ones_that_end_the_text() {
    let targets = [1, 2, 3, 4, 5, 90, 91, 91];
    let document = RolloutDocument { chunk_size: 2, targets: &targets, predictions: &[], end: None };
    assert_eq!(document.starts(true), 0..2);
    assert_eq!(document.starts(false), 0..3);
    let document = RolloutDocument { targets: &targets[..6], end: END, ..document };
    assert_eq!(document.starts(true), 0..1);
    assert_eq!(document.starts(false), 0..3);
    let short = RolloutDocument { targets: &targets[..2], end: END, ..document };
    assert_eq!(short.starts(true), 0..0);
    assert_eq!(short.starts(false), 0..0);
}

#[test]
fn roll_outs_take_accuracy_from_predictions_and_collision_from_chains() {
    let targets = [1, 2, 3, 4, 5, 90];
    let first = [1, 2, 3, 0, 5, 90];
    let second = [1, 2, 3, 4, 0, 0];
    let document =
        RolloutDocument { chunk_size: 2, targets: &targets, predictions: &[&first, &second], end: END };
    let t = document.terms(0, &[[1, 2, 8, 8], [1, 2, 8, 7]]).unwrap();
    close(t.accuracy, [1.0, 1.0, 1.0, 0.5]);
    close(t.collision, [1.0, 1.0, 1.0, 0.0]);
    let t = document.terms(2, &[vec![5, 90], vec![0, 0]]).unwrap();
    close(t.accuracy, [0.5; 4]);
    close(t.collision, [0.0; 4]);
    assert!(matches!(document.terms(3, &[[0; 4]; 2]), Err(BrierError::Shape { .. })));
    let bad = RolloutDocument { predictions: &[&first[..4]], ..document };
    assert!(matches!(bad.terms(0, &[[0; 4]; 2]), Err(BrierError::Shape { .. })));
}

#[test]
fn the_baseline_sums_the_last_token_out() {
    let squares = [0.5, 0.4, 0.3, 0.2];
    let path = |tokens| SampledPath { tokens, squares: &squares };
    let gold = [0.5, 0.5, 1.0, 0.1];
    let t = exact_terms(&[1, 2, 3, 4], &gold, &[path(&[1, 2, 3]), path(&[1, 2, 4])], None).unwrap();
    close(t.accuracy, [0.5, 0.25, 0.25, 0.025]);
    close(t.collision, [0.5, 0.4, 0.3, 0.0]);
    // Three paths: all pairs; the ones that have parted may stop.
    let paths = [path(&[1, 2, 3]), path(&[1, 2, 3]), SampledPath { tokens: &[9], squares: &[0.5] }];
    let t = exact_terms(&[1, 2, 3, 4], &gold, &paths, None).unwrap();
    close(t.collision, [0.5, 0.4 / 3.0, 0.3 / 3.0, 0.2 / 3.0]);
}

#[test]
fn the_baseline_is_sure_of_pad_after_eos() {
    let paths = [SampledPath { tokens: &[1, 90], squares: &[0.5, 0.4] }; 2];
    let t = exact_terms(&[1, 90, 91, 91], &[0.5, 0.5, 0.0, 0.0], &paths, END).unwrap();
    close(t.accuracy, [0.5, 0.25, 0.25, 0.25]);
    close(t.collision, [0.5, 0.4, 1.0, 1.0]);
}

#[test]
fn the_baseline_refuses_what_is_missing_or_no_probability() {
    let gold = [0.5; 4];
    let short = [SampledPath { tokens: &[1], squares: &[0.5, 0.5] }; 2];
    let e = exact_terms(&[1, 2, 3, 4], &gold, &short, None).unwrap_err();
    assert_eq!(e, BrierError::ShortSample(1));
    let missing = [SampledPath { tokens: &[1, 2, 3], squares: &[0.5] }; 2];
    assert_eq!(exact_terms(&[1, 2, 3, 4], &gold, &missing, None), Err(BrierError::MissingSquares(1)));
    let nan = [SampledPath { tokens: &[1, 2, 3], squares: &[f64::NAN; 4] }; 2];
    let e = exact_terms(&[1, 2, 3, 4], &gold, &nan, None).unwrap_err();
    assert!(matches!(e, BrierError::Probability { n: 1, .. }));
    assert!(exact_terms(&[1, 2, 3, 4], &[1.5; 4], &nan, None).is_err());
    assert!(exact_terms(&[1, 2, 3, 4], &gold, &nan[..1], None).is_err());
}

#[test]
fn brierlm_is_undefined_unless_all_four_are_positive() {
    assert_eq!(brierlm(&[100.0; 4]), Some(100.0));
    assert!((brierlm(&[16.0, 1.0, 1.0, 1.0]).unwrap() - 2.0).abs() < 1e-12);
    assert_eq!(brierlm(&[-1.0, -1.0, -1.0, -1.0]), None);
    assert_eq!(brierlm(&[1.0, 1.0, 1.0, 0.0]), None);
    assert_eq!(brierlm(&[1.0, f64::NAN, 1.0, 1.0]), None);
    assert!(brierlm(&[1e-100; 4]).unwrap() > 0.0);
    assert_eq!(reference_brierlm(&[-1.0, -1.0, -1.0, -1.0]), 1.0);
    assert_eq!(reference_brierlm(&[-1.0, 1.0, 1.0, 1.0]), 0.0);
}

#[test]
fn sums_are_means_over_positions_in_percent() {
    let mut a = BrierSums::new();
    assert_eq!(a.brier(), None);
    a.add(7, &[1.0, 0.0, 0.0, 0.0]);
    a.add(7, &[0.0, 0.0, 0.0, -1.0]);
    let mut b = BrierSums::new();
    b.add(3, &[1.0, 1.0, 0.0, 0.0]);
    b.add(7, &[0.0, 0.0, 0.0, 0.0]);
    a.merge(&b);
    assert_eq!((a.documents(), a.positions()), (2, 4));
    assert_eq!(a.brier(), Some([50.0, 25.0, 0.0, -25.0]));
    assert_eq!(a.iter().map(|(d, s)| (d, s.positions)).collect::<Vec<_>>(), [(3, 1), (7, 3)]);
}
