//! Columns, read. What cannot be read was not written by this program.

use taskmarket::{Address, B256, Bytes32, TaskId, Timestamp};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::StoreError;

/// Reads columns by their place.
pub(super) trait RowExt {
    fn column<'a, T: FromSql<'a>>(&'a self, place: usize) -> Result<T, StoreError>;

    fn int(&self, place: usize) -> Result<i64, StoreError> {
        self.column(place)
    }

    /// A number of any unsigned kind.
    fn number<T: TryFrom<i64>>(&self, place: usize) -> Result<T, StoreError> {
        narrow(self.int(place)?)
    }

    fn opt_number<T: TryFrom<i64>>(&self, place: usize) -> Result<Option<T>, StoreError> {
        self.column::<Option<i64>>(place)?.map(narrow).transpose()
    }

    fn time(&self, place: usize) -> Result<Timestamp, StoreError> {
        Ok(Timestamp::from_unix(self.number(place)?))
    }

    fn opt_time(&self, place: usize) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.opt_number(place)?.map(Timestamp::from_unix))
    }

    fn array<const N: usize>(&self, place: usize) -> Result<[u8; N], StoreError> {
        bytes(self.column(place)?)
    }

    fn task_id(&self, place: usize) -> Result<TaskId, StoreError> {
        Ok(TaskId(B256::from(self.array::<32>(place)?)))
    }

    fn bytes32(&self, place: usize) -> Result<Bytes32, StoreError> {
        Ok(Bytes32(B256::from(self.array::<32>(place)?)))
    }

    fn opt_bytes32(&self, place: usize) -> Result<Option<Bytes32>, StoreError> {
        let found = self.column::<Option<&[u8]>>(place)?.map(bytes).transpose()?;
        Ok(found.map(|bytes| Bytes32(B256::from(bytes))))
    }

    fn address(&self, place: usize) -> Result<Address, StoreError> {
        Ok(Address::from(self.array::<20>(place)?))
    }
}

impl RowExt for Row {
    fn column<'a, T: FromSql<'a>>(&'a self, place: usize) -> Result<T, StoreError> {
        self.try_get(place).map_err(StoreError::corrupt)
    }
}

fn narrow<T: TryFrom<i64>>(number: i64) -> Result<T, StoreError> {
    T::try_from(number).map_err(|_| StoreError::corrupt(format_args!("{number} is out of range")))
}

fn bytes<const N: usize>(bytes: &[u8]) -> Result<[u8; N], StoreError> {
    bytes
        .try_into()
        .map_err(|_| StoreError::corrupt(format_args!("{} bytes where {N} are expected", bytes.len())))
}
