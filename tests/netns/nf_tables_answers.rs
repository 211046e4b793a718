//! nf_tables answers a transaction at once, also one that it refuses as a whole.

use std::io;

use e2e::{Sandbox, sh};
use nf_tables::{Family, NfTables, NfTablesError, Table, Transaction};
use nix::unistd::{Uid, seteuid};

const TABLE: Table<'_> = Table { family: Family::Inet, name: "t" };

#[test]
fn a_transaction_refused_as_a_whole_is_told_with_the_kernel_s_reason() {
    let _sandbox = Sandbox::enter();
    let nf_tables = NfTables::open().unwrap();
    let transaction = || Transaction::default().create_table(TABLE);
    seteuid(Uid::from_raw(65534)).unwrap();
    let refused = [nf_tables.commit(&transaction()), nf_tables.try_out(&transaction())];
    let empty = nf_tables.commit(&Transaction::default());
    seteuid(Uid::from_raw(0)).unwrap();
    for error in refused.into_iter().chain([empty]).map(Result::unwrap_err) {
        assert_eq!(error.to_string(), "nf_tables refused to commit the transaction");
        let NfTablesError::Refused { source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
    }
    // The refusals are not taken for answers to what comes next.
    nf_tables.commit(&transaction()).unwrap();
    assert!(nf_tables.commit(&transaction()).unwrap_err().already_exists());
    assert_eq!(sh("nft list tables"), "table inet t\n");
    assert_eq!(nf_tables.table(TABLE).unwrap().map(|table| table.holds), Some(0));
}
