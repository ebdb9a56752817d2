//! zorai-demo, the toy model that this program carries, so that its market has a model to talk to.

use std::path::{Path, PathBuf};

use crate::failure::{Context as _, Outcome};

/// Its id in requests.
pub(crate) const NAME: &str = "zorai-demo";

/// The model; models/README.md says where it comes from.
const MODEL: &[u8] = include_bytes!("../../../../../models/zorai-demo.gguf");

/// Puts the model into the folder, unless it is there with these very bytes, and says where.
pub(crate) fn place(folder: &Path) -> Outcome<PathBuf> {
    let path = folder.join(format!("{NAME}.gguf"));
    if std::fs::read(&path).is_ok_and(|there| there == MODEL) {
        return Ok(path);
    }
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, MODEL).or_failed(fresh.display())?;
    std::fs::rename(&fresh, &path).or_failed(path.display())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use artifact::Digest;

    use super::*;

    #[test]
    fn the_model_is_small_and_the_one_that_is_described() {
        assert!(MODEL.len() <= 4 << 20);
        let described = include_str!("../../../../../models/README.md");
        assert!(described.contains(&Digest::of(MODEL).to_string()), "models/README.md describes another");
    }

    #[test]
    fn what_is_damaged_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(folder.path()).unwrap();
        std::fs::write(&path, &MODEL[1..]).unwrap();
        assert_eq!(place(folder.path()).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), MODEL);
    }
}
