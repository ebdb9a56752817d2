//! The transformer of the BERT family, applied to texts of any lengths side by side.
//!
//! The texts' tokens stand one after another without padding: what is done token by token is one product over all of them,
//! and attention is computed for texts of one length together. So a text's vector does not depend on its company.

use std::ops::Range;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Module as _, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{LayerNorm, Linear, VarBuilder, layer_norm};

use super::shape::{Activation, Family, Shape};

/// How MPNet counts the distance of two tokens: so many numbers in each direction, and the distance from which on all are
/// the same.
const BUCKETS: u32 = 16;
const MAX_DISTANCE: f32 = 128.0;

/// A loaded transformer.
pub(super) struct Encoder {
    words: Tensor,
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// A number for each bucket of distances and each head, added to the attention.
    distances: Option<Tensor>,
    heads: usize,
    shape: Shape,
}

/// Texts of one length among the tokens of a batch.
pub(super) struct Group {
    /// Where their tokens stand.
    pub(super) rows: Range<usize>,
    /// How many texts they are.
    pub(super) texts: usize,
}

struct Layer {
    /// Queries, keys and values in one product.
    attention: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    inner: Linear,
    activation: Activation,
    outer: Linear,
    norm: LayerNorm,
}

impl Encoder {
    /// Takes the weights of a model of this shape.
    pub(super) fn load(weights: &VarBuilder, shape: &Shape) -> Result<Self> {
        let prefix = shape.family.prefix();
        let root = match weights.contains_tensor(&format!("{prefix}.embeddings.word_embeddings.weight")) {
            true => weights.pp(prefix),
            false => weights.clone(),
        };
        let embeddings = root.pp("embeddings");
        let (width, heads) = (shape.width, shape.heads);
        let words = embeddings.get((shape.words, width), "word_embeddings.weight")?;
        let positions = embeddings.get((shape.positions, width), "position_embeddings.weight")?;
        // Every token of a single text is of the first kind.
        let positions = match shape.kinds {
            Some(kinds) => {
                let kinds = embeddings.get((kinds, width), "token_type_embeddings.weight")?;
                positions.broadcast_add(&kinds.narrow(0, 0, 1)?)?
            }
            None => positions,
        };
        let layers = root.pp(shape.family.layers());
        let distances = match shape.family {
            Family::Mpnet => {
                let bias = root
                    .pp("encoder")
                    .get((2 * BUCKETS as usize, heads), "relative_attention_bias.weight")?;
                Some(bias)
            }
            Family::Bert | Family::Roberta | Family::DistilBert => None,
        };
        Ok(Self {
            words,
            positions,
            norm: layer_norm(width, shape.epsilon, embeddings.pp("LayerNorm"))?,
            layers: (0..shape.layers)
                .map(|index| Layer::load(&layers.pp(index), shape))
                .collect::<Result<_>>()?,
            distances,
            heads,
            shape: shape.clone(),
        })
    }

    /// The last layer's vectors, one row for each token. `ids` are the tokens of all groups.
    pub(super) fn forward(&self, ids: &[u32], groups: &[Group]) -> Result<Tensor> {
        let device = self.words.device();
        let mut positions = Vec::with_capacity(ids.len());
        for group in groups {
            for text in ids[group.rows.clone()].chunks(group.rows.len() / group.texts) {
                self.shape.positions_of(text, &mut positions);
            }
        }
        let ids = Tensor::from_slice(ids, ids.len(), device)?;
        let positions = Tensor::from_vec(positions, ids.dims1()?, device)?;
        let embedded = (self.words.index_select(&ids, 0)? + self.positions.index_select(&positions, 0)?)?;
        let mut hidden = self.norm.forward(&embedded)?;
        let distances = groups.iter().map(|group| self.distances_of(group)).collect::<Result<Vec<_>>>()?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, groups, &distances, self.heads)?;
        }
        Ok(hidden)
    }

    /// What MPNet adds to the attention between the tokens of a text.
    fn distances_of(&self, group: &Group) -> Result<Option<Tensor>> {
        let Some(distances) = &self.distances else { return Ok(None) };
        let length = group.rows.len() / group.texts;
        let buckets = (0..length).flat_map(|query| (0..length).map(move |key| bucket(query, key)));
        let buckets = Tensor::from_iter(buckets, distances.device())?;
        let by_pair = distances.index_select(&buckets, 0)?.reshape((length, length, self.heads))?;
        Ok(Some(by_pair.permute((2, 0, 1))?.contiguous()?.unsqueeze(0)?))
    }
}

/// The bucket of the distance from a query's place to a key's: single distances first, then ever wider ones.
fn bucket(query: usize, key: usize) -> u32 {
    let side = if key > query { BUCKETS } else { 0 };
    let distance = query.abs_diff(key);
    let exact = BUCKETS / 2;
    let Some(near) = u32::try_from(distance).ok().filter(|distance| *distance < exact) else {
        let wide = (distance as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln();
        let far = exact + (wide * (BUCKETS - exact) as f32) as u32;
        return side + far.min(BUCKETS - 1);
    };
    side + near
}

impl Layer {
    fn load(weights: &VarBuilder, shape: &Shape) -> Result<Self> {
        let names = shape.family.names();
        let width = shape.width;
        let linear = |name: &str, from: usize, to: usize| candle_nn::linear(from, to, weights.pp(name));
        let norm = |name: &str| layer_norm(width, shape.epsilon, weights.pp(name));
        // The queries' scale goes into their weights.
        let scale = 1.0 / ((width / shape.heads) as f64).sqrt();
        let (mut matrices, mut biases) = (Vec::new(), Vec::new());
        for (name, scale) in names.attention.into_iter().zip([scale, 1.0, 1.0]) {
            let linear = linear(name, width, width)?;
            matrices.push((linear.weight() * scale)?);
            biases.extend(linear.bias().map(|bias| bias * scale).transpose()?);
        }
        Ok(Self {
            attention: Linear::new(Tensor::cat(&matrices, 0)?, Some(Tensor::cat(&biases, 0)?)),
            output: linear(names.output, width, width)?,
            attention_norm: norm(names.attention_norm)?,
            inner: linear(names.inner, width, shape.inner)?,
            activation: shape.activation,
            outer: linear(names.outer, shape.inner, width)?,
            norm: norm(names.norm)?,
        })
    }

    fn forward(
        &self,
        hidden: &Tensor,
        groups: &[Group],
        distances: &[Option<Tensor>],
        heads: usize,
    ) -> Result<Tensor> {
        let projected = self.attention.forward(hidden)?;
        let attended = groups.iter().zip(distances);
        let attended: Vec<_> = attended
            .map(|(group, distances)| attend(&projected, group, distances.as_ref(), heads))
            .collect::<Result<_>>()?;
        let attended = self.output.forward(&Tensor::cat(&attended, 0)?)?;
        let hidden = self.attention_norm.forward(&(attended + hidden)?)?;
        let inner = activate(self.inner.forward(&hidden)?, self.activation)?;
        let outer = self.outer.forward(&inner)?;
        self.norm.forward(&(outer + hidden)?)
    }
}

/// Attention within each text of a group.
fn attend(projected: &Tensor, group: &Group, distances: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    let (texts, length) = (group.texts, group.rows.len() / group.texts);
    let width = projected.dim(1)? / 3;
    let parts = projected
        .narrow(0, group.rows.start, group.rows.len())?
        .reshape((texts, length, 3, heads, width / heads))?
        .permute((2, 0, 3, 1, 4))?
        .contiguous()?;
    let (queries, keys, values) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
    let scores = queries.matmul(&keys.t()?)?;
    let scores = match distances {
        Some(distances) => scores.broadcast_add(distances)?,
        None => scores,
    };
    softmax_last_dim(&scores)?.matmul(&values)?.transpose(1, 2)?.reshape((texts * length, width))
}

fn activate(inner: Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu if inner.device().is_cpu() && inner.dtype() == DType::F32 => {
            inner.inplace_op1(&Gelu)?;
            Ok(inner)
        }
        Activation::Gelu => inner.gelu_erf(),
        Activation::GeluTanh => inner.gelu(),
        Activation::Relu => inner.relu(),
    }
}

/// The exact GELU, by a rational approximation of the error function that compilers turn into vector instructions.
struct Gelu;

impl InplaceOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("gelu takes contiguous 32-bit floats")
        };
        for value in &mut values[start..end] {
            *value *= 0.5 * (1.0 + erf(*value * std::f32::consts::FRAC_1_SQRT_2));
        }
        Ok(())
    }
}

/// The error function, to some 1e-7: the approximation of the Eigen library.
#[expect(clippy::excessive_precision, reason = "the coefficients as published")]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let above = [
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ];
    let below = [
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    ];
    let at_square = |sum: f32, coefficient: f32| sum * square + coefficient;
    x * above.into_iter().fold(0.0, at_square) / below.into_iter().fold(0.0, at_square)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn gelu_is_the_librarys() {
        let values: Vec<f32> = (-6000..=6000).map(|n| n as f32 / 1000.0).collect();
        let input = Tensor::new(values.as_slice(), &Device::Cpu).unwrap();
        let expected: Vec<f32> = input.gelu_erf().unwrap().to_vec1().unwrap();
        let ours: Vec<f32> = activate(input, Activation::Gelu).unwrap().to_vec1().unwrap();
        let worst = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-6, "{worst}");
    }

    #[test]
    fn distances_have_buckets() {
        assert_eq!([0, 1, 7].map(|distance| bucket(distance, 0)), [0, 1, 7]);
        assert_eq!([8, 20, 127, 500].map(|distance| bucket(distance, 0)), [8, 10, 15, 15]);
        assert_eq!([1, 9].map(|distance| bucket(0, distance)), [17, 24]);
    }
}
