//! Models as they should be and as they should not.

use std::collections::HashMap;

use serde_json::json;

use super::*;

/// The heads of zorai-demo, for queries and for keys.
const HEADS: usize = 6;
const KEY_VALUE_HEADS: usize = 2;

fn toy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/zorai-demo.gguf")
}

/// The likeliest next tokens, one after the other.
fn write_on(model: &Model, prompt: &str, count: usize) -> Vec<u32> {
    let mut tokens = model.tokens(prompt).unwrap();
    let mut session = model.session();
    let mut logits = session.forward(&tokens, 0).unwrap();
    let begin = tokens.len();
    for _ in 0..count {
        let next = logits.argmax(0).unwrap().to_scalar::<u32>().unwrap();
        logits = session.forward(&[next], tokens.len()).unwrap();
        tokens.push(next);
    }
    tokens.split_off(begin)
}

/// The same model as the transformers library would write it.
fn write_folder(folder: &Path) {
    let mut file = File::open(toy()).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let stored = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        let weights = stored.dequantize(&Device::Cpu).unwrap();
        let (place, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => (format!("model.layers.{layer}."), part),
            None => (String::new(), &**name),
        };
        // That library turns halves of a head against each other where the format turns neighbours.
        let halves = |heads: usize| {
            let (rows, width) = weights.dims2().unwrap();
            let pairs = weights.reshape((heads, rows / heads / 2, 2, width)).unwrap();
            pairs.transpose(1, 2).unwrap().reshape((rows, width)).unwrap().contiguous().unwrap()
        };
        let (new, weights) = match part {
            "token_embd.weight" => ("model.embed_tokens.weight", weights),
            "output_norm.weight" => ("model.norm.weight", weights),
            "attn_norm.weight" => ("input_layernorm.weight", weights),
            "ffn_norm.weight" => ("post_attention_layernorm.weight", weights),
            "attn_q.weight" => ("self_attn.q_proj.weight", halves(HEADS)),
            "attn_k.weight" => ("self_attn.k_proj.weight", halves(KEY_VALUE_HEADS)),
            "attn_v.weight" => ("self_attn.v_proj.weight", weights),
            "attn_output.weight" => ("self_attn.o_proj.weight", weights),
            "ffn_gate.weight" => ("mlp.gate_proj.weight", weights),
            "ffn_up.weight" => ("mlp.up_proj.weight", weights),
            "ffn_down.weight" => ("mlp.down_proj.weight", weights),
            other => panic!("{other}"),
        };
        tensors.insert(format!("{place}{new}"), weights);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let words = tokenizer::of_gguf(&content).unwrap();
    words.tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "vocab_size": 1024,
        "num_hidden_layers": 5, "num_attention_heads": HEADS, "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 1024, "tie_word_embeddings": true,
        "eos_token_id": [2],
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let template = content.metadata["tokenizer.chat_template"].to_string().unwrap();
    let config = json!({ "chat_template": template, "eos_token": { "content": "<|im_end|>" } });
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

#[test]
fn both_forms_of_a_model_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path());
    let (gguf, whole) = (Model::load(&toy()).unwrap(), Model::load(folder.path()).unwrap());
    assert_eq!((gguf.context, &*gguf.quantization), (1024, "q8_0"));
    assert_eq!((whole.context, &*whole.quantization), (1024, "f32"));
    assert!(whole.is_end(2) && !whole.is_end(3) && gguf.is_end(2));
    let turn = |role: &str, content: &str| crate::engines::embedded::template::Turn {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let prompt = gguf.template().unwrap().render(&[turn("user", "Who are you?")]).unwrap();
    assert_eq!(prompt, "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(whole.template().unwrap().render(&[turn("user", "Who are you?")]).unwrap(), prompt);
    let said = write_on(&gguf, &prompt, 20);
    assert_eq!(said, write_on(&whole, &prompt, 20));
    assert!(gguf.tokenizer().decode(&said, true).unwrap().starts_with("I am zorai-demo, a toy"));

    std::fs::write(folder.path().join("config.json"), json!({ "model_type": "mamba" }).to_string()).unwrap();
    assert!(Model::load(folder.path()).err().unwrap().contains("mamba"));
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(Model::load(folder.path()).err().unwrap().contains("config.json"));
}

#[test]
fn reading_a_prompt_in_steps_changes_nothing() {
    let model = Model::load(&toy()).unwrap();
    let tokens = model.tokens("The relay holds no wallet key, executes no task, signs nothing.").unwrap();
    let at_once = model.session().forward(&tokens, 0).unwrap().to_vec1::<f32>().unwrap();
    let mut session = model.session();
    session.forward(&tokens[..7], 0).unwrap();
    let in_steps = session.forward(&tokens[7..], 7).unwrap().to_vec1::<f32>().unwrap();
    let apart = at_once.iter().zip(&in_steps).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-3, "{apart}");
}

#[test]
fn damaged_files_are_refused_or_served_but_break_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let whole = std::fs::read(toy()).unwrap();
    // The header, where all that is believed stands: some 60 KiB.
    let mut state = 1_u64;
    let mut refused = 0;
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(state >> 33).unwrap() % 2048;
            bytes[at] ^= u8::try_from((state >> 24) & 0xff).unwrap() | 1;
        }
        std::fs::write(&path, bytes).unwrap();
        refused += usize::from(Model::load(&path).is_err());
    }
    assert!(refused > 30, "{refused} of 60");
}

#[test]
fn what_would_be_taken_otherwise_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let whole = std::fs::read(toy()).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|part| part == from).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&path, bytes).unwrap();
        Model::load(&path).err().unwrap()
    };
    let text = |length: u64, text: &str| [&length.to_le_bytes()[..], text.as_bytes()].concat();
    assert!(replaced(&text(5, "llama"), &text(5, "gemma")).contains("gemma"));
    assert!(replaced(&text(5, "gpt-2"), &text(5, "jais!")).contains("jais!"));
    assert!(
        replaced(b"llama.block_count\x04\0\0\0\x05\0\0\0", b"llama.block_count\x04\0\0\0\xff\xff\xff\xff")
            .contains("llama.block_count")
    );
    assert!(Model::load(&folder.path().join("nowhere.gguf")).is_err());
}
