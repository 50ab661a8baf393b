use super::*;
use crate::bootstrap::BrierReport;
use crate::rng::Stream;

const BOOTSTRAP: Bootstrap = Bootstrap { replicates: 400, seed: 3 };

/// A run on documents of 4 positions: `level` plus what the seed, the documents and single positions add.
fn run(seed: u64, documents: u64, level: f64) -> BrierSums {
    let mut sums = BrierSums::new();
    let (mut own, mut text) = (Stream::new(seed, "run", 0), Stream::new(0, "text", 0));
    let shift = 0.1 * (own.uniform() - 0.5);
    for document in 0..documents {
        let difficulty = 0.2 * (text.uniform() - 0.5);
        for _ in 0..4 {
            let mut noise = || 0.05 * (own.uniform() - 0.5);
            let c = level + shift + difficulty;
            sums.add(document, &[c + noise(), c / 2.0 + noise(), c / 3.0 + noise(), c / 4.0 + noise()]);
        }
    }
    sums
}

fn runs(seeds: std::ops::Range<u64>, level: f64) -> Vec<BrierSums> {
    seeds.map(|seed| run(seed, 20, level)).collect()
}

/// Every position the same four numbers.
fn constant(brier: [f64; 4]) -> BrierSums {
    let mut sums = BrierSums::new();
    (0..6).for_each(|document| sums.add(document, &brier));
    sums
}

fn near(a: f64, b: f64) -> bool {
    (a / b - 1.0).abs() < 1e-9
}

#[test]
fn the_seed_part_of_a_mean_is_the_variance_divided_by_the_number_of_seeds() {
    for seeds in 2..6 {
        let (first, second) = (runs(0..seeds, 0.5), runs(10..10 + seeds, 0.4));
        let report = over_seeds(&first, &BOOTSTRAP).unwrap();
        let difference = difference_over_seeds(&first, &second, &BOOTSTRAP).unwrap();
        for n in 0..4 {
            let own: Vec<f64> = first.iter().map(|s| s.brier().unwrap()[n]).collect();
            let textbook = deviation(own.iter().copied()).unwrap() / (seeds as f64).sqrt();
            let estimate = report.brier.unwrap()[n];
            assert!(near(estimate.seeds.unwrap(), textbook), "{seeds} {n}");
            assert!(near(estimate.value, own.iter().sum::<f64>() / seeds as f64));
            let pairs = first.iter().zip(&second).map(|(a, b)| a.brier().unwrap()[n] - b.brier().unwrap()[n]);
            let textbook = deviation(pairs.clone()).unwrap() / (seeds as f64).sqrt();
            let estimate = difference.brier[n].estimate;
            assert!(near(estimate.seeds.unwrap(), textbook), "{seeds} {n}");
            assert!(near(estimate.value, pairs.sum::<f64>() / seeds as f64));
        }
    }
}

#[test]
fn the_document_part_is_the_bootstrap_of_the_averaged_sums() {
    let runs = runs(0..3, 0.5);
    let averaged: Vec<f64> = (0..20)
        .map(|d| runs.iter().map(|r| r.iter().nth(d).unwrap().1.sum[0]).sum::<f64>() / 12.0 * 100.0)
        .collect();
    let textbook = deviation(averaged.iter().copied()).unwrap() / 20f64.sqrt();
    let report = over_seeds(&runs, &Bootstrap { replicates: 20_000, seed: 1 }).unwrap();
    let part = report.brier.unwrap()[0].documents.unwrap();
    // 20,000 replicates leave 0.5 % of noise.
    assert!((part / textbook - 1.0).abs() < 0.02, "{part} against {textbook}");
    assert_eq!((report.seeds, report.documents, report.positions), (3, 20, 80));
}

#[test]
fn brierlm_is_that_of_the_averaged_brier_n() {
    let runs = [constant([0.5, 0.4, 0.2, 0.1]), constant([0.3, 0.2, 0.2, 0.3]), constant([0.4; 4])];
    let report = over_seeds(&runs, &BOOTSTRAP).unwrap();
    let mean = |b: [f64; 4]| 100.0 * b.iter().product::<f64>().sqrt().sqrt();
    let estimate = report.brierlm.unwrap();
    assert!(near(estimate.value, mean([0.4, 1.0 / 3.0, 0.8 / 3.0, 0.8 / 3.0])));
    // Without the first, the second, the third run.
    let left: [f64; 3] =
        [mean([0.35, 0.3, 0.3, 0.35]), mean([0.45, 0.4, 0.3, 0.25]), mean([0.4, 0.3, 0.2, 0.2])];
    let centre = left.iter().sum::<f64>() / 3.0;
    let squares: f64 = left.iter().map(|l| (l - centre).powi(2)).sum();
    assert!(near(estimate.seeds.unwrap(), (squares * 2.0 / 3.0).sqrt()));
}

#[test]
fn one_seed_gives_the_report_of_that_run_and_no_seed_part() {
    let (first, second) = (run(1, 20, 0.5), run(2, 20, 0.4));
    let seeded = over_seeds(std::slice::from_ref(&first), &BOOTSTRAP).unwrap();
    let BrierReport { brierlm, brierlm_se, brier, brier_se, .. } = report(&first, &BOOTSTRAP);
    let alone = |value, documents| Estimate { value, documents, seeds: None };
    assert_eq!(seeded.brierlm, brierlm.map(|b| alone(b, brierlm_se)));
    let brier = brier.zip(brier_se).map(|(b, se)| std::array::from_fn(|n| alone(b[n], Some(se[n]))));
    assert_eq!(seeded.brier, brier);
    assert_eq!(seeded.brierlm.unwrap().se(), None);
    // One run of one of the models is enough to know nothing about its seeds.
    let three = runs(5..8, 0.4);
    for other in [std::slice::from_ref(&second), &three] {
        let one = std::slice::from_ref(&first);
        let difference = difference_over_seeds(one, other, &BOOTSTRAP).unwrap();
        for contrast in difference.brier.iter().chain(&difference.brierlm) {
            assert!(contrast.estimate.documents.is_some() && contrast.estimate.seeds.is_none());
            assert_eq!((contrast.half_width, contrast.detectable), (None, None));
        }
    }
    let pair = paired_difference(&first, &second, &BOOTSTRAP).unwrap();
    let difference = difference_over_seeds(&[first], &[second], &BOOTSTRAP).unwrap();
    assert_eq!(difference.brierlm.unwrap().estimate, alone(pair.brierlm.unwrap(), pair.brierlm_se));
}

#[test]
fn what_the_seeds_of_a_pair_share_cancels() {
    // Both models lose the same by a seed.
    let shifted = |level: f64| [0.0, 0.03, 0.09].map(|shift| constant([level - shift; 4]));
    let (first, second) = (shifted(0.5), shifted(0.4));
    let paired = difference_over_seeds(&first, &second, &BOOTSTRAP).unwrap();
    assert!(paired.brier[0].estimate.seeds.unwrap() < 1e-12);
    let swapped = [first[1].clone(), first[0].clone(), first[2].clone()];
    let broken = difference_over_seeds(&swapped, &second, &BOOTSTRAP).unwrap();
    assert!(broken.brier[0].estimate.seeds.unwrap() > 1.0);
}

#[test]
fn different_numbers_of_seeds_add_their_variances() {
    let (first, second) = (runs(0..2, 0.5), runs(10..14, 0.4));
    let difference = difference_over_seeds(&first, &second, &BOOTSTRAP).unwrap();
    let (a, b) = (over_seeds(&first, &BOOTSTRAP).unwrap(), over_seeds(&second, &BOOTSTRAP).unwrap());
    let part = |r: &SeededReport| r.brierlm.unwrap().seeds.unwrap();
    let contrast = difference.brierlm.unwrap();
    assert!(near(contrast.estimate.seeds.unwrap(), part(&a).hypot(part(&b))));
    let documents = contrast.estimate.documents.unwrap();
    let interval = Interval::new(&[(documents, 19.0), (part(&a), 1.0), (part(&b), 3.0)]).unwrap();
    assert!(near(contrast.half_width.unwrap(), interval.half_width));
    assert!(near(contrast.degrees_of_freedom.unwrap(), interval.degrees_of_freedom));
    assert_eq!((difference.seeds, difference.positions), ([2, 4], [80, 80]));
    // The other way round only the sign changes.
    let back = difference_over_seeds(&second, &first, &BOOTSTRAP).unwrap();
    assert!(near(back.brierlm.unwrap().half_width.unwrap(), contrast.half_width.unwrap()));
    assert_eq!(back.brierlm.unwrap().estimate.value, -contrast.estimate.value);
}

#[test]
fn intervals_use_the_degrees_of_freedom_of_welch_and_satterthwaite() {
    let one = Interval::new(&[(0.5, 4.0)]).unwrap();
    // t tables: 2.7764 and 0.9410 for 4 degrees of freedom.
    assert!((one.degrees_of_freedom - 4.0).abs() < 1e-12);
    assert!((one.half_width - 0.5 * 2.7764).abs() < 1e-4);
    assert!((one.detectable - 0.5 * (2.7764 + 0.9410)).abs() < 1e-4);
    // Two samples of 3 and of 5 with standard errors 3 and 4: ν = 25² / (81/2 + 256/4).
    let two = Interval::new(&[(3.0, 2.0), (4.0, 4.0)]).unwrap();
    assert!((two.degrees_of_freedom - 625.0 / 104.5).abs() < 1e-12);
    assert!((two.half_width / 5.0 - 2.4497).abs() < 2e-3); // 2.4469 for 6, 2.5706 for 5
    // Equal parts add their degrees of freedom; a part of nothing does not count.
    assert!((Interval::new(&[(1.0, 3.0), (1.0, 3.0)]).unwrap().degrees_of_freedom - 6.0).abs() < 1e-12);
    assert!((Interval::new(&[(1.0, 3.0), (0.0, 1.0)]).unwrap().degrees_of_freedom - 3.0).abs() < 1e-12);
    assert_eq!(Interval::new(&[(0.0, 3.0), (0.0, 1.0)]), None);
    assert_eq!(Interval::new(&[(1.0, 0.0)]), None);
    assert_eq!(Interval::new(&[(f64::NAN, 3.0)]), None);
    assert_eq!(Interval::new(&[]), None);
}

#[test]
fn a_brierlm_undefined_without_one_seed_has_no_seed_part() {
    // The first run carries Brier-4: without it the mean of the others is negative.
    let fourth = |b4| constant([0.5, 0.4, 0.3, b4]);
    let runs = [fourth(0.2), fourth(-0.01), fourth(-0.02)];
    let report = over_seeds(&runs, &BOOTSTRAP).unwrap();
    let brierlm = report.brierlm.unwrap();
    assert!(brierlm.documents.is_some() && brierlm.seeds.is_none());
    assert!(report.brier.unwrap()[3].seeds.is_some());
    let better = [0.3, 0.31, 0.35].map(fourth);
    let difference = difference_over_seeds(&better, &runs, &BOOTSTRAP).unwrap();
    let contrast = difference.brierlm.unwrap();
    assert!(contrast.estimate.seeds.is_none() && contrast.half_width.is_none());
    assert!(difference.brier[3].half_width.is_some());
    // Undefined altogether.
    let never = [fourth(-0.2), fourth(-0.01)];
    let report = over_seeds(&never, &BOOTSTRAP).unwrap();
    assert_eq!((report.brierlm, report.undefined_replicates), (None, Some(1.0)));
    assert!(difference_over_seeds(&runs, &never, &BOOTSTRAP).unwrap().brierlm.is_none());
}

#[test]
fn runs_of_other_documents_or_positions_are_refused_by_name() {
    let (five, six) = (run(1, 5, 0.5), run(2, 6, 0.5));
    let refused = |runs: &[BrierSums]| over_seeds(runs, &BOOTSTRAP).unwrap_err();
    assert_eq!(refused(&[]), SeedError::NoSeeds);
    let runs = [five.clone(), five.clone(), six.clone()];
    assert_eq!(refused(&runs), SeedError::Document { document: 5, run: 3 });
    let mut longer = five.clone();
    longer.add(2, &[0.1; 4]);
    let error = refused(&[five.clone(), longer.clone()]);
    assert_eq!(error, SeedError::Positions { document: 2, run: 2, found: 5, expected: 4 });
    assert!(error.to_string().starts_with("document 2 has 5 positions in run 2"));
    let difference = |a: &[BrierSums], b: &[BrierSums]| difference_over_seeds(a, b, &BOOTSTRAP);
    let (five, six) = ([five.clone(), five], [six.clone(), six]);
    assert_eq!(difference(&five, &six), Err(PairError::Unpaired(5).into()));
    assert_eq!(difference(&five, &runs), Err(SeedError::Document { document: 5, run: 3 }));
    assert_eq!(difference(&five, &[]), Err(SeedError::NoSeeds));
    let nothing = [BrierSums::new(), BrierSums::new()];
    assert_eq!(difference(&nothing, &nothing), Err(PairError::Empty.into()));
    let empty = over_seeds(&nothing, &BOOTSTRAP).unwrap();
    assert_eq!((empty.brier, empty.brierlm, empty.positions), (None, None, 0));
    // Models may differ in their positions.
    assert!(difference(&five, &[longer]).is_ok());
}

#[test]
fn one_document_has_no_document_part() {
    let runs = [run(1, 1, 0.5), run(2, 1, 0.5)];
    let report = over_seeds(&runs, &BOOTSTRAP).unwrap();
    let brierlm = report.brierlm.unwrap();
    assert!(brierlm.seeds.is_some() && brierlm.documents.is_none() && brierlm.se().is_none());
    assert_eq!(report.undefined_replicates, None);
}

#[test]
fn the_same_seed_gives_the_same_digits_on_any_number_of_threads() {
    let (first, second) = (runs(0..3, 0.5), runs(10..13, 0.4));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let difference = difference_over_seeds(&first, &second, &BOOTSTRAP).unwrap();
            (over_seeds(&first, &BOOTSTRAP).unwrap(), difference)
        })
    };
    assert_eq!(on(1), on(3));
    let other = over_seeds(&first, &Bootstrap { seed: 4, ..BOOTSTRAP }).unwrap();
    assert_ne!(on(1).0, other);
}

#[test]
fn kept_scores_give_the_same_report_and_reports_are_kept_too() {
    let (first, second) = (runs(0..3, 0.5), runs(10..13, 0.4));
    let kept: Vec<BrierSums> = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
    assert_eq!(kept, first);
    let report = over_seeds(&kept, &BOOTSTRAP).unwrap();
    assert_eq!(report, over_seeds(&first, &BOOTSTRAP).unwrap());
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<SeededReport>(&json).unwrap(), report);
    let difference = difference_over_seeds(&first, &second, &BOOTSTRAP).unwrap();
    let json = serde_json::to_string(&difference).unwrap();
    assert_eq!(serde_json::from_str::<SeededDifference>(&json).unwrap(), difference);
    let alone = serde_json::to_value(over_seeds(&first[..1], &BOOTSTRAP).unwrap()).unwrap();
    assert!(alone["brierlm"]["seeds"].is_null() && alone["brierlm"]["documents"].is_number());
}
