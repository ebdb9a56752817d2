//! SQLite does what every store must do.

use std::sync::Arc;

use store::Sqlite;

use crate::conformance::each_case;

macro_rules! conforms {
    ($($concern:ident::$case:ident)*) => {$(
        #[tokio::test]
        async fn $case() {
            let dir = tempfile::tempdir().unwrap();
            let store = Sqlite::open(dir.path()).await.unwrap();
            crate::conformance::$concern::$case(Arc::new(store)).await;
        }
    )*};
}

each_case!(conforms);
