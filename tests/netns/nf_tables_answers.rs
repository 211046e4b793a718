//! nf_tables answers a transaction at once, also one that it refuses as a whole.

use std::io;
use std::thread;

use e2e::{Sandbox, sh};
use nf_tables::{Chain, Expression, Family, Hook, NfTables, NfTablesError, Place, Rule, Table, Transaction};
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

#[test]
fn a_chain_is_in_force_only_where_packets_meet_it_as_wanted() {
    let _sandbox = Sandbox::enter();
    let nf_tables = NfTables::open().unwrap();
    let chain = |hook| Chain { table: TABLE, name: "c", hook };
    let at = |priority| chain(Some(Hook::Filter { place: Place::Forward, priority }));
    let wanted = at(7);
    let in_force = || nf_tables.is_in_force(&wanted).unwrap();
    assert!(!in_force(), "there is no table");
    nf_tables.commit(&Transaction::default().add_table(TABLE)).unwrap();
    assert!(!in_force(), "there is no chain");
    for (there, expected) in [
        (wanted, true),
        (at(8), false),
        (chain(None), false),
        (chain(Some(Hook::Filter { place: Place::Output, priority: 7 })), false),
        (chain(Some(Hook::Nat { place: Place::Postrouting, priority: 7 })), false),
    ] {
        nf_tables.commit(&Transaction::default().add_chain(&there)).unwrap();
        assert_eq!(in_force(), expected, "{there:?}");
        nf_tables.commit(&Transaction::default().delete_chain(&there)).unwrap();
    }
    nf_tables.commit(&Transaction::default().add_chain(&wanted)).unwrap();
    sh("nft add table inet t { flags dormant ; }");
    assert!(!in_force(), "the table is dormant");
    nf_tables.commit(&Transaction::default().add_table(TABLE)).unwrap();
    assert!(in_force(), "it was made again");
}

#[test]
fn a_list_is_of_one_moment_though_others_rewrite_it() {
    // The kernel sends as many in one part. Of a longer list it loses some without telling, where a transaction ends
    // between two parts.
    const RULES: usize = 200;
    let _sandbox = Sandbox::enter();
    let nf_tables = NfTables::open().unwrap();
    let chain = Chain { table: TABLE, name: "c", hook: None };
    let rewrite = || {
        let ground = Transaction::default().add_table(TABLE).add_chain(&chain).flush_chain(&chain);
        (0..RULES).fold(ground, |transaction, _| {
            transaction.add_rule(&chain, &Rule { expressions: vec![Expression::counter()], comment: "" })
        })
    };
    nf_tables.commit(&rewrite()).unwrap();
    thread::scope(|scope| {
        // Threads are in the sandbox of the one that starts them.
        let writer = scope.spawn(|| {
            let nf_tables = NfTables::open().unwrap();
            for _ in 0..500 {
                nf_tables.commit(&rewrite()).unwrap();
            }
        });
        while !writer.is_finished() {
            assert_eq!(nf_tables.rules(&chain).unwrap().len(), RULES);
        }
    });
}
