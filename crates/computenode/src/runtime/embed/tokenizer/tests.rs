use std::process::Command;

use serde_json::{Value, json};

use super::*;

fn tokenizer() -> Value {
    json!({
        "version": "1.0", "truncation": {"anything": [1]}, "padding": null, "decoder": {"type": "WordPiece"},
        "added_tokens": [{"id": 1, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
        },
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100,
                  "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "a": 3, "##b": 4}}
    })
}

fn refused(tokenizer: &Value, what: &str) {
    let error = load(tokenizer.to_string().as_bytes(), 8).map(drop).unwrap_err();
    assert_eq!(error.code, crate::runtime::RunCode::BadModel);
    assert!(error.message.contains(what), "{error} says nothing of {what}");
}

#[test]
fn what_bert_models_use_is_loaded() {
    let loaded = load(tokenizer().to_string().as_bytes(), 8).unwrap();
    assert_eq!(loaded.encode_fast("AB x", true).unwrap().get_ids(), [2, 3, 4, 1]);
    let mut sequence = tokenizer();
    sequence["normalizer"] =
        json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]});
    let loaded = load(sequence.to_string().as_bytes(), 8).unwrap();
    assert_eq!(loaded.encode_fast("áb", true).unwrap().get_ids(), [2, 3, 4]);
}

#[test]
fn what_roberta_models_use_is_loaded() {
    let mut roberta = tokenizer();
    roberta["normalizer"] = Value::Null;
    roberta["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    roberta["post_processor"] = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
                                       "trim_offsets": true, "add_prefix_space": false});
    let vocabulary = json!({"<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "\u{120}": 6, "\u{120}ab": 7});
    for merges in [json!(["a b", "\u{120} ab"]), json!([["a", "b"], ["\u{120}", "ab"]])] {
        roberta["model"] = json!({"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                                  "continuing_subword_prefix": "", "end_of_word_suffix": "",
                                  "vocab": vocabulary, "merges": merges});
        let loaded = load(roberta.to_string().as_bytes(), 8).unwrap();
        assert_eq!(loaded.encode_fast("ab abb", true).unwrap().get_ids(), [1, 5, 7, 4, 2]);
    }
}

#[test]
fn a_text_cannot_be_made_to_grow() {
    let replace = |content: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
    let mut bomb = tokenizer();
    bomb["normalizer"] = json!({"type": "Sequence", "normalizers": vec![replace("aa"); 2]});
    refused(&bomb, "Replace");
    bomb["normalizer"] = json!({"type": "Sequence", "normalizers": vec![replace("a"); 17]});
    refused(&bomb, "16 steps");
    bomb["normalizer"] = replace("aaaa");
    refused(&bomb, "Replace");
    let twice = json!({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFKD"}]});
    bomb["normalizer"] = twice.clone();
    refused(&bomb, "NFKD");
    bomb["normalizer"] = json!({"type": "Sequence", "normalizers": [twice]});
    refused(&bomb, "Sequence");
}

#[test]
fn what_is_not_known_to_be_bounded_is_refused() {
    let sequence = || json!({"Sequence": {"id": "A", "type_id": 0}});
    for (at, value, what) in [
        ("/pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}}), "Split"),
        ("/post_processor", json!({"type": "ByteLevel"}), "ByteLevel"),
        ("/post_processor/single", json!([sequence(), sequence()]), "single"),
        ("/post_processor/special_tokens/[CLS]/ids", json!(vec![2; 17]), "special tokens"),
        ("/model/type", json!("Unigram"), "Unigram"),
        ("/model/max_input_chars_per_word", json!(201), "max_input_chars_per_word"),
        ("/model/continuing_subword_prefix", json!("#".repeat(17)), "continuing_subword_prefix"),
        ("/model/unk_token", json!("u".repeat(257)), "unk_token"),
        ("/added_tokens/0/content", json!(""), "added_tokens"),
    ] {
        let mut changed = tokenizer();
        *changed.pointer_mut(at).unwrap() = value;
        refused(&changed, what);
    }
}

/// A tokenizer as XLM-RoBERTa's is written, and what SentencePiece itself makes of some texts.
fn sentencepiece() -> (Value, Vec<(String, Vec<u32>)>) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let script = Command::new("python3")
        .args([&format!("{root}/crates/computenode/tests/unigram.py"), &format!("{root}/demo/text.txt")])
        .output()
        .expect("python3");
    assert!(
        script.status.success(),
        "pip install -r scripts/requirements.txt: {}",
        String::from_utf8_lossy(&script.stderr)
    );
    let mut made: Value = serde_json::from_slice(&script.stdout).expect("JSON");
    let expected = serde_json::from_value(made["expected"].take()).expect("texts with numbers");
    (made["tokenizer"].take(), expected)
}

#[test]
fn sentencepiece_models_give_what_sentencepiece_does() {
    let (made, expected) = sentencepiece();
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let mut later = made.clone();
    later["pre_tokenizer"] = metaspace;
    later["normalizer"] = json!({"type": "Sequence", "normalizers": [
        made["normalizer"],
        {"type": "Strip", "strip_left": false, "strip_right": true},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
    ]});
    for (form, tokenizer) in [("XLM-RoBERTa's", made), ("a later", later)] {
        let loaded = load(tokenizer.to_string().as_bytes(), 512).unwrap();
        for (text, ids) in &expected {
            let encoded = loaded.encode_fast(text.as_str(), true).unwrap();
            assert_eq!(encoded.get_ids(), ids, "{form} form: {text:?} as {:?}", encoded.get_tokens());
        }
    }
}

#[test]
fn what_a_sentencepiece_model_brings_is_looked_at() {
    let mut xlm = tokenizer();
    xlm["normalizer"] = json!({"type": "Lowercase"});
    xlm["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true});
    xlm["model"] =
        json!({"type": "Unigram", "unk_id": 1, "vocab": [["[PAD]", 0.0], ["[UNK]", 0.0], ["▁a", -1.5]]});
    let loaded = load(xlm.to_string().as_bytes(), 8).unwrap();
    assert_eq!(loaded.encode_fast("A a x", true).unwrap().get_ids(), [2, 2, 2, 1]);
    let replace = |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
    let space = json!({"String": " "});
    for (at, value, what) in [
        ("/normalizer", json!({"type": "Precompiled"}), "precompiled_charsmap"),
        (
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "precompiled_charsmap: it is cut off",
        ),
        ("/normalizer", replace(json!({"Regex": "(a+)+$"}), ""), "(a+)+$"),
        ("/normalizer", replace(space.clone(), "1234"), "4 bytes in place of 1"),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [replace(space.clone(), "▁"), replace(space, "▁")]}),
            "Replace",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": []}]}),
            "within another",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [xlm["pre_tokenizer"], xlm["pre_tokenizer"]]}),
            "Metaspace",
        ),
        ("/model/unk_id", json!(3), "unk_id"),
        ("/model/unk_id", Value::Null, "unk_id"),
        ("/model/vocab", json!({"[UNK]": 0}), "vocabulary is not one of Unigram"),
        ("/model/vocab/2/1", json!("high"), "tokenizer.json"),
    ] {
        let mut changed = xlm.clone();
        *changed.pointer_mut(at).unwrap() = value;
        refused(&changed, what);
    }
}
