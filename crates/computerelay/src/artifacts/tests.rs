use std::time::SystemTime;

use artifact::{FolderEntry, FolderManifest};
use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use store::Sqlite;
use taskmarket::{Address, CancelTask, Domain, Mutation, Runtime, TaskConfig, TaskId};
use tempfile::TempDir;
use wallet::Wallet;

use super::*;
use crate::auth::AttemptTokens;
use crate::market::Market;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Rig {
    dir: TempDir,
    store: Arc<dyn Store>,
    artifacts: Artifacts,
}

async fn rig(quota: Option<u64>) -> Rig {
    let dir = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path().join("store")).await.unwrap());
    let location = ArtifactLocation::from(dir.path().join("blobs"));
    let artifacts = Artifacts::open(&location, Arc::clone(&store), quota, u64::MAX).await.unwrap();
    Rig { dir, store, artifacts }
}

fn owner() -> KeyId {
    KeyId::of_api_key("somebody's")
}

fn pieces(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + use<> {
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    futures_util::stream::iter(pieces)
}

impl Artifacts {
    /// Stores bytes in one go: for a key, whose quota holds with `bounded`, or for an attempt at a task of its.
    async fn put<E>(
        &self,
        source: impl Stream<Item = Result<Bytes, E>>,
        digest: Digest,
        limit: u64,
        owner: KeyId,
        bounded: bool,
    ) -> Result<(), PutError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let uploader = if bounded { Uploader::Key(owner) } else { attempt(1, owner) };
        let room = Arc::new(Mutex::new(Space::unbounded()));
        self.put_upload(self.begin(digest, uploader, room), source, digest, limit).await
    }
}

fn attempt(attempt: u32, owner: KeyId) -> Uploader {
    attempt_of(1, attempt, owner)
}

fn attempt_of(provider: u8, attempt: u32, owner: KeyId) -> Uploader {
    let provider = Address::repeat_byte(provider);
    Uploader::Attempt { task_id: TaskId(B256::ZERO), attempt, provider, owner }
}

impl Rig {
    async fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.artifacts.put(pieces(bytes), digest, u64::MAX, owner(), true).await.unwrap();
        digest
    }

    fn file(&self, digest: &Digest) -> std::path::PathBuf {
        let name = digest.to_string();
        self.dir.path().join("blobs").join(&name[..2]).join(&name[2..])
    }

    /// The names of all files of artifacts, staged ones too.
    fn files(&self) -> usize {
        let shards = std::fs::read_dir(self.dir.path().join("blobs")).unwrap();
        shards.map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap().count()).sum()
    }

    async fn expire_after(&self, days: u32) -> u64 {
        self.artifacts.expire_at(now().plus((DAY * days).as_secs()), DAY).await.unwrap()
    }

    async fn has(&self, digest: Digest) -> bool {
        self.artifacts.contains(&digest).await.unwrap()
    }
}

async fn read(artifacts: &Artifacts, digest: Digest, from: u64, to: u64) -> Vec<u8> {
    let pieces = artifacts.read(&digest, from, to).await.unwrap().unwrap();
    pieces.try_fold(Vec::new(), async |all, piece| Ok([all, piece.to_vec()].concat())).await.unwrap()
}

fn task(wallet: &Wallet, salt: u8) -> Task {
    Task {
        requester: wallet.address(),
        model_cid: "https://models.example/program.wasm".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://inputs.example/input.json".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 600,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: "1".parse().unwrap(),
        provider_stake: taskmarket::Amount::ZERO,
        dispute_bond: taskmarket::Amount::ZERO,
        deadline: now().plus(86_400),
        dispute_window: 86_400,
        arbiter_window: 604_800,
        arbiter: Address::ZERO,
        salt: taskmarket::Bytes32(B256::repeat_byte(salt)),
    }
}

#[tokio::test]
async fn bytes_come_back_whole_and_in_part() {
    let rig = rig(None).await;
    for bytes in [vec![], b"small".to_vec(), (0..3_000_000u32).map(|n| n as u8).collect()] {
        let (digest, size) = (rig.put(&bytes).await, bytes.len() as u64);
        assert_eq!(rig.artifacts.size_of(&digest).await.unwrap(), Some(size));
        assert!(read(&rig.artifacts, digest, 0, size).await == bytes);
        let (from, to) = (size / 3, size / 3 * 2);
        assert!(read(&rig.artifacts, digest, from, to).await == bytes[from as usize..to as usize]);
    }
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let rig = rig(None).await;
    for bytes in [b"small".to_vec(), vec![7; 3_000_000]] {
        let wrong = Digest::of(b"other");
        let refused = rig.artifacts.put(pieces(&bytes), wrong, u64::MAX, owner(), true).await;
        assert!(matches!(refused, Err(PutError::HashMismatch { .. })), "{refused:?}");
        let digest = Digest::of(&bytes);
        let refused = rig.artifacts.put(pieces(&bytes), digest, bytes.len() as u64 - 1, owner(), true).await;
        assert!(matches!(refused, Err(PutError::TooLarge { .. })), "{refused:?}");
        let broken = pieces(&bytes[..bytes.len() / 2])
            .chain(futures_util::stream::iter([Err(std::io::Error::other("gone"))]));
        let refused = rig.artifacts.put(broken, digest, u64::MAX, owner(), true).await;
        assert!(matches!(refused, Err(PutError::Source(_))), "{refused:?}");
        // A caller that leaves.
        let endless = pieces(&bytes).chain(futures_util::stream::pending());
        let left =
            timeout(Duration::from_millis(50), rig.artifacts.put(endless, digest, u64::MAX, owner(), true));
        assert!(left.await.is_err());
        assert!(!rig.has(digest).await && !rig.has(wrong).await);
    }
    rig.artifacts.close().await;
    // The removal of a staged file is not waited for by the crate that stages it.
    for _ in 0..500 {
        if rig.files() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} files are left", rig.files());
}

#[tokio::test]
async fn what_broke_off_is_kept_for_a_while_and_not_without_end() {
    let rig = rig(Some(10_000_000)).await;
    let artifacts = &rig.artifacts;
    let bytes = |number: u8| vec![number; 1_000_000];
    let break_off = async |number: u8, owner: &KeyId| {
        let digest = Digest::of(&bytes(number));
        let room = Arc::new(Mutex::new(artifacts.reserve(owner, None).await.unwrap()));
        let upload = artifacts.begin(digest, Uploader::Key(owner.clone()), room);
        let cut = pieces(&bytes(number)[..900_000]);
        let broken = cut.chain(futures_util::stream::iter([Err(std::io::Error::other("gone"))]));
        let refused = artifacts.put_upload(upload, broken, digest, u64::MAX).await;
        assert!(matches!(refused, Err(PutError::Source(_))), "{refused:?}");
        digest
    };
    let first = break_off(1, &owner()).await;
    assert_eq!(artifacts.came(&Uploader::Key(owner()), first), Some(900_000));
    assert!(artifacts.take_up(&Uploader::Key(owner()), first, 800_000).is_none());
    let upload = artifacts.take_up(&Uploader::Key(owner()), first, 900_000).unwrap();
    assert_eq!(artifacts.came(&Uploader::Key(owner()), first), None, "one request at a time goes on with it");
    artifacts.put_upload(upload, pieces(&bytes(1)[900_000..]), first, u64::MAX).await.unwrap();
    assert!(read(artifacts, first, 0, 1_000_000).await == bytes(1));

    // A key's oldest goes for its newest.
    let mut last = first;
    for number in 2..=6 {
        last = break_off(number, &owner()).await;
    }
    assert_eq!(artifacts.came(&Uploader::Key(owner()), Digest::of(&bytes(2))), None);
    assert_eq!(artifacts.came(&Uploader::Key(owner()), last), Some(900_000));
    // What all keys together may keep is bounded, and small ones are not kept at all.
    for key in 0..20_u8 {
        break_off(7, &KeyId::of_api_key(&key.to_string())).await;
    }
    let of =
        |key: u8| artifacts.came(&Uploader::Key(KeyId::of_api_key(&key.to_string())), Digest::of(&bytes(7)));
    assert_eq!((0..20).filter(|key| of(*key).is_some()).count(), 12);
    artifacts.0.broken_off.expire(Duration::from_secs(60));
    assert_eq!(artifacts.came(&Uploader::Key(owner()), last), Some(900_000));
    artifacts.0.broken_off.expire(Duration::ZERO);
    assert_eq!((artifacts.came(&Uploader::Key(owner()), last), of(0)), (None, None));
}

#[tokio::test]
async fn an_attempt_goes_on_with_its_own_upload_alone() {
    let rig = rig(Some(1)).await;
    let artifacts = &rig.artifacts;
    let bytes = vec![7; 1_000_000];
    let digest = Digest::of(&bytes);
    let break_off = async |uploader: Uploader, digest: Digest| {
        let upload = artifacts.begin(digest, uploader, Arc::new(Mutex::new(Space::unbounded())));
        let cut = pieces(&bytes[..900_000]);
        let broken = cut.chain(futures_util::stream::iter([Err(std::io::Error::other("gone"))]));
        assert!(artifacts.put_upload(upload, broken, digest, u64::MAX).await.is_err());
    };
    let (first, second) = (attempt(1, owner()), attempt(2, owner()));
    break_off(first.clone(), Digest::of(b"another result")).await;
    break_off(first.clone(), digest).await;
    assert_eq!(artifacts.came(&first, Digest::of(b"another result")), None, "an attempt has one result");
    assert_eq!(artifacts.came(&first, digest), Some(900_000));
    assert_eq!(
        (artifacts.came(&second, digest), artifacts.came(&Uploader::Key(owner()), digest)),
        (None, None)
    );
    assert!(artifacts.take_up(&second, digest, 900_000).is_none());
    break_off(second.clone(), digest).await;
    artifacts.forget(&second);
    assert_eq!(artifacts.came(&second, digest), None);
    // The key's quota is long spent; a result is not refused for it.
    let upload = artifacts.take_up(&first, digest, 900_000).unwrap();
    artifacts.put_upload(upload, pieces(&bytes[900_000..]), digest, u64::MAX).await.unwrap();
    assert!(read(artifacts, digest, 0, 1_000_000).await == bytes);
}

#[tokio::test]
async fn attempts_leave_places_for_keys_and_a_provider_for_others() {
    let rig = rig(None).await;
    let artifacts = &rig.artifacts;
    let bytes = vec![7; 600_000];
    let digest = Digest::of(b"the whole");
    let break_off = async |uploader: &Uploader| {
        let upload = artifacts.begin(digest, uploader.clone(), Arc::new(Mutex::new(Space::unbounded())));
        let broken = pieces(&bytes).chain(futures_util::stream::iter([Err(std::io::Error::other("gone"))]));
        assert!(artifacts.put_upload(upload, broken, digest, u64::MAX).await.is_err());
    };
    let is_kept = |uploader: &Uploader| artifacts.came(uploader, digest).is_some();
    let attempts = |provider: u8| (1..=20).map(move |number| attempt_of(provider, number, owner()));
    for attempt in attempts(1) {
        break_off(&attempt).await;
    }
    // A provider's oldest goes for its newest.
    let kept: Vec<bool> = attempts(1).map(|attempt| is_kept(&attempt)).collect();
    assert_eq!(kept.iter().rposition(|kept| !kept), Some(15), "{kept:?}");
    for provider in 2..=9 {
        for attempt in attempts(provider) {
            break_off(&attempt).await;
        }
    }
    let kept = (1..=9).flat_map(attempts).filter(|attempt| is_kept(attempt)).count();
    assert_eq!(kept, 16, "what all attempts together may keep");
    assert_eq!(
        attempts(2).filter(|attempt| is_kept(attempt)).count(),
        4,
        "the first provider took its places"
    );
    let key = Uploader::Key(owner());
    break_off(&key).await;
    assert!(is_kept(&key), "attempts took the places of keys");
}

#[tokio::test]
async fn halves_that_a_crash_left_are_healed() {
    let rig = rig(None).await;
    // Metadata without bytes, and with half of them.
    let (gone, cut) = (rig.put(b"gone").await, rig.put(b"cut short").await);
    std::fs::remove_file(rig.file(&gone)).unwrap();
    std::fs::write(rig.file(&cut), b"cut").unwrap();
    assert!(!rig.has(gone).await && !rig.has(cut).await);
    rig.put(b"gone").await;
    rig.put(b"cut short").await;
    assert!(rig.has(gone).await && rig.has(cut).await);
    // Bytes without metadata do not count, and go once they are old.
    let stray = Digest::of(b"stray");
    std::fs::create_dir_all(rig.file(&stray).parent().unwrap()).unwrap();
    std::fs::write(rig.file(&stray), b"stray").unwrap();
    std::fs::write(rig.dir.path().join("blobs/notes.txt"), b"an operator's").unwrap();
    assert!(!rig.has(stray).await);
    assert_eq!(rig.artifacts.remove_strays().await.unwrap(), 0, "it may be on its way");
    assert_eq!(rig.artifacts.remove_strays_of(SystemTime::now() + DAY).await.unwrap(), 1);
    assert!(!rig.file(&stray).exists() && rig.has(gone).await && rig.has(cut).await);
    assert!(rig.dir.path().join("blobs/notes.txt").exists());
    rig.put(b"stray").await;
    assert!(rig.has(stray).await);
}

#[tokio::test]
async fn what_was_left_staged_is_cleared_once_it_is_old() {
    let rig = rig(None).await;
    let digest = rig.put(b"whole").await;
    let staged = |number: u8| {
        let name = format!("{}#{number}", rig.file(&digest).display());
        std::fs::write(&name, b"wh").unwrap();
        name
    };
    let (old, new) = (staged(1), staged(2));
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    rig.artifacts.remove_strays().await.unwrap();
    assert!(!std::path::Path::new(&old).exists() && std::path::Path::new(&new).exists());
    assert!(rig.has(digest).await);
}

#[tokio::test]
async fn the_unused_goes_and_what_unfinished_tasks_need_stays() {
    let rig = rig(None).await;
    let market =
        Market::new(Arc::clone(&rig.store), rig.artifacts.clone(), AttemptTokens::new([0; 32]), None);
    let (model, input, unused) = (rig.put(b"model").await, rig.put(b"input").await, rig.put(b"unused").await);
    let file = rig.put(b"of the folder").await;
    let entry = FolderEntry { path: "a/b".to_owned(), size: 13, digest: file };
    let folder = rig.put(&FolderManifest::new(vec![entry]).unwrap().to_bytes()).await;
    let wallet = Wallet::random();
    let mut ids = Vec::new();
    for task in [
        Task {
            model_cid: format!("artifact://{model}").parse().unwrap(),
            input_hash: hash_of(input),
            ..task(&wallet, 1)
        },
        Task { input_cid: format!("artifact://{folder}/").parse().unwrap(), ..task(&wallet, 2) },
    ] {
        let signed = wallet.sign(&task, &Domain::UNSETTLED).unwrap();
        let task = signed.verify(&Domain::UNSETTLED).unwrap();
        ids.push(market.publish(task, owner()).await.unwrap().0.record.id);
    }
    assert_eq!(rig.expire_after(1).await, 0, "not unused for long enough");
    assert_eq!(rig.expire_after(2).await, 1);
    assert!(!rig.has(unused).await && !rig.file(&unused).exists());
    for needed in [model, input, folder, file] {
        assert!(rig.has(needed).await);
    }
    assert_eq!(rig.expire_after(5).await, 0);
    let cancel = CancelTask { task_id: ids[0], issued_at: now() };
    let cancel = wallet.sign(&cancel, &Domain::UNSETTLED).unwrap().verify(&Domain::UNSETTLED).unwrap();
    market.mutate(Mutation::Cancel(cancel), None).await.unwrap();
    // To have been needed was a use.
    assert_eq!(rig.expire_after(6).await, 0);
    assert_eq!(rig.expire_after(8).await, 2);
    assert!(!rig.has(model).await && !rig.has(input).await && rig.has(folder).await && rig.has(file).await);
    assert_eq!(
        rig.store.stored_bytes(&owner()).await.unwrap(),
        rig.artifacts.size_of(&folder).await.unwrap().unwrap() + 13
    );
}

#[tokio::test]
async fn an_artifact_that_is_being_removed_is_not_promised() {
    let rig = rig(None).await;
    let digest = rig.put(b"bytes").await;
    let (hash, later) = (hash_of(digest), now().plus(9));
    // A relay dooms it, and ends.
    assert!(rig.store.doom_artifact(hash, later, now()).await.unwrap());
    assert!(!rig.has(digest).await);
    let refused = rig.artifacts.put(pieces(b"bytes"), digest, 9, owner(), true).await;
    assert!(matches!(refused, Err(PutError::Doomed)), "{refused:?}");
    // Another one goes on after a while.
    assert_eq!(rig.artifacts.expire_at(now().plus(store::DOOMED_SECS + 1), DAY).await.unwrap(), 1);
    rig.put(b"bytes").await;
    assert!(rig.has(digest).await);
}

#[tokio::test]
async fn a_key_stores_no_more_than_its_quota() {
    let rig = rig(Some(10)).await;
    rig.put(b"123456").await;
    let put = async |bytes: &'static [u8], owner, bounded| {
        rig.artifacts.put(pieces(bytes), Digest::of(bytes), 99, owner, bounded).await
    };
    let refused = put(b"seven b", owner(), true).await;
    assert!(matches!(refused, Err(PutError::OverQuota { quota: 10, stored: 6 })), "{refused:?}");
    assert!(!rig.file(&Digest::of(b"seven b")).exists());
    assert!(matches!(rig.artifacts.reserve(&owner(), Some(5)).await, Err(PutError::OverQuota { .. })));
    assert!(rig.artifacts.reserve(&owner(), None).await.is_ok());
    put(b"seven b", KeyId::of_api_key("another's"), true).await.unwrap();
    // A result counts, and is not refused.
    put(b"a result", owner(), false).await.unwrap();
    assert!(matches!(rig.artifacts.reserve(&owner(), None).await, Err(PutError::OverQuota { .. })));
    assert_eq!(rig.store.stored_bytes(&owner()).await.unwrap(), 14);
}

/// As with a bucket: parts of a size, no files.
#[tokio::test]
async fn objects_without_files_do_as_well() {
    let dir = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path().join("store")).await.unwrap());
    let memory = Arc::new(object_store::memory::InMemory::new());
    let artifacts = Artifacts::over(Objects::of_parts(memory.clone(), 1 << 20), Arc::clone(&store), None);
    for bytes in [vec![], b"small".to_vec(), (0..5_000_000u32).map(|n| (n >> 3) as u8).collect()] {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let refused = artifacts.put(pieces(&bytes), Digest::of(b"x"), u64::MAX, owner(), true).await;
        assert!(matches!(refused, Err(PutError::HashMismatch { .. })), "{refused:?}");
        artifacts.put(pieces(&bytes), digest, u64::MAX, owner(), true).await.unwrap();
        assert!(read(&artifacts, digest, 0, size).await == bytes);
        assert!(read(&artifacts, digest, size / 2, size).await == bytes[bytes.len() / 2..]);
    }
    assert_eq!(artifacts.expire_at(now().plus(DAY.as_secs() * 3), DAY).await.unwrap(), 3);
    let left: Vec<_> = memory.list(None).try_collect().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}
