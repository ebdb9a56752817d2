//! The shape of a model, as its `config.json` says: of which family it is, and how large.

use serde::Deserialize;

use super::model::bad;
use crate::runtime::RunError;

/// Bounds of a model's shape: above those of published models.
const MAX_LAYERS: usize = 128;
const MAX_HEADS: usize = 128;

/// The shape of a model.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) family: Family,
    /// The vocabulary's size.
    pub(super) words: usize,
    /// The length of a token's vector.
    pub(super) width: usize,
    /// The length of the vector within a layer.
    pub(super) inner: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) positions: usize,
    /// The kinds of tokens that it tells apart, if it does.
    pub(super) kinds: Option<usize>,
    pub(super) activation: Activation,
    /// Keeps a normalisation from dividing by zero.
    pub(super) epsilon: f64,
    /// The token of padding, after whose number positions are counted, if they are.
    padding: Option<u32>,
}

/// Models with the same parts under the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    /// Counts positions from behind the number of its padding token.
    Roberta,
    /// Has no kinds of tokens.
    DistilBert,
    /// As RoBERTa, with no kinds of tokens, and with a bias by the distance of tokens.
    Mpnet,
}

/// The families by the names that files have for them.
const MODEL_TYPES: [(&str, Family); 6] = [
    ("bert", Family::Bert),
    ("roberta", Family::Roberta),
    ("xlm-roberta", Family::Roberta),
    ("camembert", Family::Roberta),
    ("distilbert", Family::DistilBert),
    ("mpnet", Family::Mpnet),
];

/// What the tensors of one layer are called.
pub(super) struct Names {
    /// Queries, keys, values.
    pub(super) attention: [&'static str; 3],
    pub(super) output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) inner: &'static str,
    pub(super) outer: &'static str,
    pub(super) norm: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Activation {
    #[serde(rename = "gelu")]
    Gelu,
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_approximate")]
    GeluTanh,
    #[serde(rename = "relu")]
    Relu,
}

/// What `config.json` holds; DistilBERT has names of its own.
#[derive(Deserialize)]
pub(super) struct Config {
    model_type: Option<String>,
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    #[serde(alias = "activation")]
    hidden_act: Activation,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
}

impl Shape {
    /// The shape that a `config.json` describes.
    ///
    /// # Errors
    /// `bad_model`: a family that is not known here, or numbers beyond those of any model.
    pub(super) fn new(config: &Config) -> Result<Self, RunError> {
        let family = Family::named(config.model_type.as_deref())?;
        if config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            let kind = &config.position_embedding_type;
            return Err(bad(format!("config.json: position_embedding_type {kind:?} is not absolute")));
        }
        let kinds = match family {
            Family::Bert => Some(config.type_vocab_size.unwrap_or(2)),
            Family::Roberta => Some(config.type_vocab_size.unwrap_or(1)),
            Family::DistilBert | Family::Mpnet => None,
        };
        let padding = match family {
            Family::Bert | Family::DistilBert => None,
            Family::Roberta => Some(config.pad_token_id.unwrap_or(1)),
            Family::Mpnet => Some(1),
        };
        let shape = Self {
            family,
            words: config.vocab_size,
            width: config.hidden_size,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            positions: config.max_position_embeddings,
            kinds,
            activation: config.hidden_act,
            epsilon: config.layer_norm_eps.unwrap_or(1e-12),
            padding,
        };
        shape.check()?;
        Ok(shape)
    }

    /// The most tokens that a text may have.
    pub(super) fn max_tokens(&self) -> usize {
        let before = self.padding.map_or(0, |padding| padding as usize + 1);
        self.positions.saturating_sub(before)
    }

    /// Adds the positions of a text's tokens.
    pub(super) fn positions_of(&self, text: &[u32], positions: &mut Vec<u32>) {
        match self.padding {
            None => positions.extend((0..).take(text.len())),
            Some(padding) => {
                let mut last = padding;
                // A token of padding within a text has the padding's position, and is not counted.
                positions.extend(text.iter().map(|id| {
                    if *id == padding {
                        return padding;
                    }
                    last += 1;
                    last
                }));
            }
        }
    }

    fn check(&self) -> Result<(), RunError> {
        let within = |name: &str, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                Err(bad(format!("config.json: {name} is {value}; it must be 1 to {most}")))
            }
        };
        within("num_hidden_layers", self.layers, MAX_LAYERS)?;
        within("num_attention_heads", self.heads, MAX_HEADS)?;
        within("hidden_size", self.width, 1 << 16)?;
        within("intermediate_size", self.inner, 1 << 18)?;
        within("vocab_size", self.words, 1 << 24)?;
        within("type_vocab_size", self.kinds.unwrap_or(1), 1 << 16)?;
        within("max_position_embeddings", self.positions, 1 << 20)?;
        within("max_position_embeddings less what stands before", self.max_tokens(), 1 << 20)?;
        if !self.width.is_multiple_of(self.heads) {
            return Err(bad("config.json: num_attention_heads does not divide hidden_size"));
        }
        if !self.epsilon.is_finite() || self.epsilon < 0.0 {
            return Err(bad("config.json: layer_norm_eps is no small number"));
        }
        Ok(())
    }
}

impl Family {
    fn named(model_type: Option<&str>) -> Result<Self, RunError> {
        let Some(model_type) = model_type else { return Ok(Self::Bert) };
        let known = MODEL_TYPES.iter().find(|(name, _)| *name == model_type);
        known.map(|(_, family)| *family).ok_or_else(|| {
            let names = MODEL_TYPES.map(|(name, _)| name).join(", ");
            bad(format!("config.json: model_type {model_type:?} is not one of {names}"))
        })
    }

    /// What stands before the tensors' names where the model was saved with a head.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::DistilBert => "distilbert",
            Self::Mpnet => "mpnet",
        }
    }

    /// Where the layers are.
    pub(super) fn layers(self) -> &'static str {
        match self {
            Self::Bert | Self::Roberta | Self::Mpnet => "encoder.layer",
            Self::DistilBert => "transformer.layer",
        }
    }

    pub(super) fn names(self) -> Names {
        let bert = Names {
            attention: ["attention.self.query", "attention.self.key", "attention.self.value"],
            output: "attention.output.dense",
            attention_norm: "attention.output.LayerNorm",
            inner: "intermediate.dense",
            outer: "output.dense",
            norm: "output.LayerNorm",
        };
        match self {
            Self::Bert | Self::Roberta => bert,
            Self::Mpnet => Names {
                attention: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                output: "attention.attn.o",
                attention_norm: "attention.LayerNorm",
                ..bert
            },
            Self::DistilBert => Names {
                attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                output: "attention.out_lin",
                attention_norm: "sa_layer_norm",
                inner: "ffn.lin1",
                outer: "ffn.lin2",
                norm: "output_layer_norm",
            },
        }
    }
}
