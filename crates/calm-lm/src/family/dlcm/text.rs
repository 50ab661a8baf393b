//! Texts that grow: the same model token by token, several texts at once.
//!
//! What a text has to remember besides keys and values: the direction of its last token (the next one's boundary depends
//! on it), its last smoothed concept, and of `closed` pooling the sum of its open segment. A concept's layers run when
//! it is opened, never again.
//!
//! Boundaries leap where p crosses ½: a text has the same ones in any company because every product has at least as
//! many rows as make its bits steady; fewer are filled up, those over concepts too.

use calm_kernels as ops;
use calm_kernels::Spans;
use calm_nn::device::upload;
use candle_core::{DType, Result, Tensor, bail};

use super::boundaries::{Predictor, precise};
use super::config::{CrossKeys, Pooling, Smoothing};
use super::cross::KeysValues;
use super::model::Dlcm;
use crate::Cache;
use crate::text_state::Kept;

/// What is kept of a text.
#[derive(Clone, Debug, Default)]
pub struct DlcmCache {
    encoder: Cache,
    concepts: Cache,
    decoder: Cache,
    /// Keys and values that its tokens see: of each concept, or for each token those of its concept.
    cross: Option<KeysValues>,
    last: Option<Last>,
}

/// What is kept of the last token.
#[derive(Clone, Debug)]
struct Last {
    /// `[1, 1, D]`: q, or nothing without probabilities.
    query: Option<Tensor>,
    /// `[1, 1, Dc]`, where it is averaged in f32.
    smoothed: Tensor,
    /// `[1, 1, Hkv, Dh]` each: what the open concept says.
    keys_values: KeysValues,
    /// `[1, 1, D]` in f32: sum of the states of the open segment, and how many.
    open: (Tensor, u32),
}

impl Kept for DlcmCache {
    fn positions(&self) -> usize {
        self.encoder.len()
    }
}

/// What was met while a text was read, for [`DlcmCache::until`].
pub(super) struct Trail {
    opens: Vec<bool>,
    queries: Option<Tensor>,
    states: Tensor,
    smoothed: Tensor,
    keys_values: KeysValues,
}

/// `n` positions of `t` from `at` on.
fn cut((k, v): &KeysValues, at: usize, n: usize) -> Result<KeysValues> {
    Ok((k.narrow(1, at, n)?, v.narrow(1, at, n)?))
}

/// Positions `[1, .., ..]` of all of these, of which one at least has some.
fn beside<'a>(parts: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    // What is empty is left out: a GPU launches nothing for it.
    let parts: Vec<&Tensor> = parts.into_iter().filter(|t| t.elem_count() > 0).collect();
    Tensor::cat(&parts, 1)
}

fn joined((k, v): &KeysValues, (more_k, more_v): &KeysValues) -> Result<KeysValues> {
    Ok((beside([k, more_k])?, beside([v, more_v])?))
}

impl Trail {
    /// Tokens of the text.
    pub(super) fn len(&self) -> usize {
        self.opens.len()
    }
}

impl DlcmCache {
    /// What it held after its first `tokens` tokens, of a text that was read at once into an empty cache.
    pub(super) fn until(&self, tokens: usize, trail: &Trail, keys: CrossKeys) -> Result<Self> {
        let concepts = trail.opens[..tokens].iter().filter(|o| **o).count();
        let opened = trail.opens[..tokens].iter().rposition(|o| *o).unwrap_or(0);
        let open = precise(&trail.states.narrow(1, opened, tokens - opened)?)?.sum_keepdim(1)?;
        let seen = match keys {
            CrossKeys::Concepts => concepts,
            CrossKeys::Replicated => tokens,
        };
        Ok(Self {
            encoder: self.encoder.first(tokens)?,
            concepts: self.concepts.first(concepts)?,
            decoder: self.decoder.first(tokens)?,
            cross: self.cross.as_ref().map(|kv| cut(kv, 0, seen)).transpose()?,
            last: Some(Last {
                query: trail.queries.as_ref().map(|q| q.narrow(1, tokens - 1, 1)).transpose()?,
                smoothed: trail.smoothed.narrow(1, concepts - 1, 1)?,
                keys_values: cut(&trail.keys_values, concepts - 1, 1)?,
                open: (open, (tokens - opened) as u32),
            }),
        })
    }
}

impl Dlcm {
    /// Tokens of several texts one after the other, `lengths[0]` of the first and so on, each after its own cache ->
    /// hidden states `[1, N, D]`, and what was met in each.
    pub(super) fn read_on(
        &self,
        tokens: &[u32],
        lengths: &[usize],
        caches: &mut [&mut DlcmCache],
    ) -> Result<(Tensor, Vec<Trail>)> {
        let n = tokens.len();
        if n >= self.least {
            return self.read_rows(tokens, lengths, caches);
        }
        let mut nobody = DlcmCache::default();
        let filled = [tokens, &vec![self.text.special.pad; self.least - n]].concat();
        let lengths = [lengths, &[self.least - n]].concat();
        let mut all: Vec<&mut DlcmCache> = caches.iter_mut().map(|c| &mut **c).collect();
        all.push(&mut nobody);
        let (hidden, mut trails) = self.read_rows(&filled, &lengths, &mut all)?;
        trails.pop();
        Ok((hidden.narrow(1, 0, n)?, trails))
    }

    fn read_rows(
        &self,
        tokens: &[u32],
        lengths: &[usize],
        caches: &mut [&mut DlcmCache],
    ) -> Result<(Tensor, Vec<Trail>)> {
        if lengths.len() != caches.len() || lengths.contains(&0) {
            bail!("{} texts with {} caches", lengths.len(), caches.len())
        }
        let begins: Vec<usize> = lengths
            .iter()
            .scan(0, |end, n| {
                *end += n;
                Some(*end - n)
            })
            .collect();
        let ids = upload(tokens, (1, tokens.len(), 1), &self.output)?;
        let mut encoders: Vec<&mut Cache> = caches.iter_mut().map(|c| &mut c.encoder).collect();
        let h = self.encoder.forward_side_by_side(&self.embed(&ids)?.detach(), lengths, &mut encoders)?;
        let h = h.detach();
        let of = |t: &Tensor, text: usize| t.narrow(1, begins[text], lengths[text]);

        let (queries, p) = self.ahead(&h, lengths, &begins, caches)?;
        let host: Option<Vec<f32>> = match &p {
            Some(p) => Some(p.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?),
            None => None,
        };
        let mut opens: Vec<Vec<bool>> = Vec::with_capacity(caches.len());
        for (text, cache) in caches.iter().enumerate() {
            let (before, from) = (cache.encoder.len() - lengths[text], begins[text]);
            let settled = |i: usize| {
                let place = before + i;
                place == 0 || self.predictor.settled(host.as_ref().map(|p| p[from + i]), place)
            };
            opens.push((0..lengths[text]).map(settled).collect());
        }

        let concepts = self.new_concepts(&h, p.as_ref(), &opens, &begins, caches)?;
        let q = self.cross.queries(&h)?.detach();
        let mut mixed = Vec::with_capacity(caches.len());
        let mut trails = Vec::with_capacity(caches.len());
        for (text, (cache, (opens, (smoothed, fresh)))) in
            caches.iter_mut().zip(opens.into_iter().zip(concepts)).enumerate()
        {
            let n = lengths[text];
            // What the tokens may look up: the concept that was open before them, if any, and the new ones.
            let was_open = usize::from(cache.last.is_some());
            let (known, smoothed) = match &cache.last {
                Some(last) => (joined(&last.keys_values, &fresh)?, beside([&last.smoothed, &smoothed])?),
                None => (fresh.clone(), smoothed),
            };
            let new: Vec<u32> = opens
                .iter()
                .scan(0, |count, opens| {
                    *count += u32::from(*opens);
                    Some(*count)
                })
                .collect();
            let more = match self.cross.sees() {
                CrossKeys::Concepts => fresh,
                CrossKeys::Replicated => {
                    let index: Vec<u32> = new.iter().map(|k| k + was_open as u32 - 1).collect();
                    let index = upload(&index, n, &self.output)?;
                    (known.0.index_select(&index, 1)?, known.1.index_select(&index, 1)?)
                }
            };
            let before = cache.cross.as_ref().map_or(Ok(0), |(k, _)| k.dim(1))?;
            let all = match &cache.cross {
                Some(old) => joined(old, &more)?,
                None => more,
            };
            let end = |i: usize| match self.cross.sees() {
                CrossKeys::Concepts => before as u32 + new[i],
                CrossKeys::Replicated => (before + i) as u32 + 1,
            };
            let spans = Spans::new([1, n, all.0.dim(1)?], (0..n).map(|i| (0, end(i))).collect())?;
            mixed.push(self.cross.attend(&of(&q, text)?, &all, &spans)?);
            cache.cross = Some(all);

            let states = of(&h, text)?;
            let queries = queries.as_ref().map(|q| of(q, text)).transpose()?;
            let found = smoothed.dim(1)?;
            let opened = opens.iter().rposition(|o| *o);
            let from = opened.unwrap_or(0);
            let rest = precise(&states.narrow(1, from, n - from)?)?.sum_keepdim(1)?;
            let rest_count = (n - from) as u32;
            let open = match (&cache.last, opened) {
                (Some(last), None) => ((&last.open.0 + rest)?, last.open.1 + rest_count),
                _ => (rest, rest_count),
            };
            cache.last = Some(Last {
                query: queries.as_ref().map(|q| q.narrow(1, n - 1, 1)).transpose()?,
                smoothed: smoothed.narrow(1, found - 1, 1)?,
                keys_values: cut(&known, found - 1, 1)?,
                open,
            });
            trails.push(Trail { opens, queries, states, smoothed, keys_values: known });
        }
        let x = (h + self.cross.output(&beside(&mixed)?)?)?.detach();
        let mut decoders: Vec<&mut Cache> = caches.iter_mut().map(|c| &mut c.decoder).collect();
        let hidden = self.decoder.forward_side_by_side(&x, lengths, &mut decoders)?.detach();
        Ok((self.at_width(hidden)?, trails))
    }

    /// q and p of states `h [1, N, D]`: `[1, N, D]` and `[1, N]`. At a text's first token p means nothing.
    fn ahead(
        &self,
        h: &Tensor,
        lengths: &[usize],
        begins: &[usize],
        caches: &[&mut DlcmCache],
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some([q, k]) = self.predictor.directions(h)? else { return Ok((None, None)) };
        let (q, k) = (q.detach(), k.detach());
        let mut before = Vec::with_capacity(2 * lengths.len());
        for ((begin, length), cache) in begins.iter().zip(lengths).zip(caches) {
            let last = cache.last.as_ref().and_then(|l| l.query.clone());
            before.push(last.map_or_else(|| q.narrow(1, *begin, 1), Ok)?);
            before.push(q.narrow(1, *begin, length - 1)?);
        }
        let p = Predictor::between_texts(&beside(&before)?, &k)?;
        Ok((Some(q), Some(p)))
    }

    /// Of each text the smoothed concepts that its new tokens open `[1, m, Dc]`, and what cross-attention sees of them;
    /// m may be 0.
    fn new_concepts(
        &self,
        h: &Tensor,
        p: Option<&Tensor>,
        opens: &[Vec<bool>],
        begins: &[usize],
        caches: &mut [&mut DlcmCache],
    ) -> Result<Vec<(Tensor, KeysValues)>> {
        let mut contents = Vec::new();
        let mut counts = Vec::with_capacity(opens.len());
        for ((opens, begin), cache) in opens.iter().zip(begins).zip(caches.iter()) {
            let opened: Vec<usize> = (0..opens.len()).filter(|i| opens[*i]).collect();
            for (i, at) in opened.iter().enumerate() {
                let before = (i > 0).then(|| opened[i - 1]);
                contents.push(self.content(h, *begin, *at, before, cache.last.as_ref())?);
            }
            counts.push(opened.len());
        }
        let total: usize = counts.iter().sum();
        let mut nobody = Cache::default();
        let mut lengths: Vec<usize> = counts.iter().copied().filter(|n| *n > 0).collect();
        let fresh = caches.iter_mut().zip(&counts).filter(|(_, n)| **n > 0);
        let mut layers: Vec<&mut Cache> = fresh.map(|(c, _)| &mut c.concepts).collect();
        if total < self.least {
            contents.push(h.narrow(1, 0, 1)?.zeros_like()?.repeat((1, self.least - total, 1))?);
            lengths.push(self.least - total);
            layers.push(&mut nobody);
        }
        let wide = self.concepts.widen(&beside(&contents)?)?.detach();
        let z = self.concepts.backbone.forward_side_by_side(&wide, &lengths, &mut layers)?.detach();
        let mut smoothed = Vec::with_capacity(counts.len());
        let mut at = 0;
        for (text, n) in counts.iter().enumerate() {
            let z = z.narrow(1, at, *n)?;
            let last = caches[text].last.as_ref().map(|l| &l.smoothed);
            smoothed.push(self.smoothed(&z, p, &opens[text], begins[text], last)?);
            at += n;
        }
        let rest = z.dim(1)? - at;
        let filler = z.narrow(1, at, rest)?;
        let rounded = |t: &Tensor| t.to_dtype(z.dtype());
        let there = smoothed.iter().filter(|t| t.elem_count() > 0);
        let there = there.map(rounded).collect::<Result<Vec<Tensor>>>()?;
        let all = self.cross.keys_values(&beside(there.iter().chain([&filler]))?)?;
        let all = (all.0.detach(), all.1.detach());
        let mut at = 0;
        let mut out = Vec::with_capacity(counts.len());
        for (smoothed, n) in smoothed.into_iter().zip(counts) {
            out.push((smoothed, cut(&all, at, n)?));
            at += n;
        }
        Ok(out)
    }

    /// What the concept that token `at` of a text opens is made of, `[1, 1, D]`: the text's states begin at `begin` of
    /// `h`, the concept before it was opened at `before`, or before these tokens.
    fn content(
        &self,
        h: &Tensor,
        begin: usize,
        at: usize,
        before: Option<usize>,
        last: Option<&Last>,
    ) -> Result<Tensor> {
        if self.concepts.pooling == Pooling::Boundary || (before.is_none() && last.is_none()) {
            return h.narrow(1, begin + at, 1);
        }
        let from = before.unwrap_or(0);
        let sum_of = |h: Tensor| precise(&h)?.sum_keepdim(1);
        let closed = (at > from).then(|| sum_of(h.narrow(1, begin + from, at - from)?)).transpose()?;
        let (sum, count) = match (closed, before, last) {
            (Some(closed), None, Some(Last { open: (sum, count), .. })) => {
                ((sum + closed)?, *count as usize + at)
            }
            (None, None, Some(Last { open: (sum, count), .. })) => (sum.clone(), *count as usize),
            (Some(closed), ..) => (closed, at - from),
            (None, ..) => bail!("two concepts opened at the token {at}"),
        };
        (sum / count as f64)?.to_dtype(h.dtype())
    }

    /// Z̃ of the concepts `z [1, m, Dc]` that `opens` opens, after `last`; where they are averaged, in f32.
    fn smoothed(
        &self,
        z: &Tensor,
        p: Option<&Tensor>,
        opens: &[bool],
        begin: usize,
        last: Option<&Tensor>,
    ) -> Result<Tensor> {
        let m = z.dim(1)?;
        let (Smoothing::Ema, Some(p)) = (self.concepts.smoothing, p) else { return Ok(z.clone()) };
        if m == 0 {
            return Ok(z.clone());
        }
        let opened: Vec<u32> = (0..opens.len()).filter(|i| opens[*i]).map(|i| (begin + i) as u32).collect();
        let p = p.index_select(&upload(&opened, m, &self.output)?, 1)?;
        let z = precise(z)?;
        // The concept before them goes in front, as one that is certain.
        let with_last = last.map(|last| Tensor::cat(&[last, &z], 1)).transpose()?;
        let (z, p) = match with_last {
            Some(z) => (z, Tensor::cat(&[&p.narrow(1, 0, 1)?.ones_like()?, &p], 1)?),
            None => (z, p),
        };
        let one_document = upload(&vec![0u32; z.dim(1)?], (1, z.dim(1)?), &self.output)?;
        let all = ops::smooth(&z, &p, &one_document)?.detach();
        all.narrow(1, all.dim(1)? - m, m)
    }
}

#[cfg(test)]
mod tests {
    use super::super::boundaries::Decisions;
    use super::super::testing::{S, batch, ids, model, settings};
    use super::*;

    /// The first document of the first row: its tokens.
    const TOKENS: usize = 8;

    fn rows(t: &Tensor) -> Vec<Vec<f32>> {
        t.squeeze(0).unwrap().to_vec2().unwrap()
    }

    fn assert_near(got: &[Vec<f32>], want: &[Vec<f32>], what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        let off = got.iter().flatten().zip(want.iter().flatten()).map(|(g, w)| (g - w).abs());
        let off = off.fold(0f32, |a, b| if b.is_nan() { f32::INFINITY } else { a.max(b) });
        // Sums in other orders through some layers; measured 4e-6 of numbers up to 4.
        assert!(off < 3e-5, "{what}: off by {off}");
    }

    /// (hidden states, boundaries) of the document within its whole batch.
    fn whole(model: &Dlcm) -> (Vec<Vec<f32>>, Vec<bool>) {
        let batch = batch(&ids());
        let pass = model.pass(&batch, Decisions::Settled).unwrap();
        if let Some(p) = &pass.boundaries.probability {
            let p: Vec<f32> = p.flatten_all().unwrap().to_vec1().unwrap();
            // Nearer to a threshold rounding would decide, and there would be nothing to compare.
            assert!(p[..S].iter().all(|p| (p - 0.5).abs() > 1e-4 && (p - 0.4).abs() > 1e-4), "{p:?}");
        }
        let hidden: Vec<Vec<f32>> = pass.hidden.get(0).unwrap().to_vec2().unwrap();
        (hidden[..TOKENS].to_vec(), pass.boundaries.opens[..TOKENS].to_vec())
    }

    #[test]
    fn token_by_token_text_has_the_states_of_the_whole() {
        for config in settings() {
            let model = model(&config);
            let (hidden, opens) = whole(&model);
            for pieces in [&[8][..], &[1; 8], &[3, 1, 4], &[2, 6]] {
                let (mut cache, mut at, mut got, mut found) =
                    (DlcmCache::default(), 0, Vec::new(), Vec::new());
                for n in pieces {
                    let tokens = &ids()[at..at + n];
                    let (hidden, trails) = model.read_on(tokens, &[*n], &mut [&mut cache]).unwrap();
                    got.extend(rows(&hidden));
                    found.extend(trails[0].opens.clone());
                    at += n;
                }
                assert_eq!(found, opens, "{config:?}");
                assert_near(&got, &hidden, &format!("{config:?} in pieces of {pieces:?}"));
            }
        }
    }

    #[test]
    fn what_a_text_held_after_some_tokens_is_found_again_in_what_it_holds_at_the_end() {
        for config in settings() {
            let model = model(&config);
            let (hidden, _) = whole(&model);
            let text = &ids()[..TOKENS];
            let mut cache = DlcmCache::default();
            let (_, trails) = model.read_on(text, &[TOKENS], &mut [&mut cache]).unwrap();
            for tokens in 1..TOKENS {
                let mut cache = cache.until(tokens, &trails[0], model.cross.sees()).unwrap();
                assert_eq!(cache.positions(), tokens);
                let mut got = Vec::new();
                for token in &text[tokens..] {
                    let (hidden, _) = model.read_on(&[*token], &[1], &mut [&mut cache]).unwrap();
                    got.extend(rows(&hidden));
                }
                assert_near(&got, &hidden[tokens..], &format!("{config:?} after {tokens}"));
            }
        }
    }

    #[test]
    fn a_text_is_the_same_in_any_company() {
        for config in settings() {
            let model = model(&config);
            let text = ids();
            let alone = |cache: &mut DlcmCache, tokens: &[u32]| {
                rows(&model.read_on(tokens, &[tokens.len()], &mut [cache]).unwrap().0)
            };
            let mut cache = DlcmCache::default();
            let want = [alone(&mut cache, &text[..5]), alone(&mut cache, &text[5..7])].concat();

            let (mut a, mut b, mut c) = (DlcmCache::default(), DlcmCache::default(), DlcmCache::default());
            let together = [&text[12..15], &text[..5], &text[20..21]].concat();
            let first = model.read_on(&together, &[3, 5, 1], &mut [&mut a, &mut b, &mut c]).unwrap().0;
            let together = [&text[5..7], &text[3..12]].concat();
            let second = model.read_on(&together, &[2, 9], &mut [&mut b, &mut a]).unwrap().0;
            let got = [&rows(&first)[3..8], &rows(&second)[..2]].concat();
            assert_eq!(got, want, "{config:?}");
        }
    }
}
