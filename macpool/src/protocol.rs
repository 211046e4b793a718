//! How replicas share one range, with nothing between them but the API server. Documentation; no code.
//!
//! # Objects
//! The address space is cut into **blocks** of 256 addresses (the first five octets). A block that was ever used has a
//! **record** ([`crate::record::Record`]), the cluster-scoped custom object `MacBlock` named after it:
//!
//! - `holder`: the replica that may give addresses of this block, from its memory, without asking; or nobody;
//! - `taken`: 256 bits, the addresses that must not be given;
//! - `claims`: who asked for an address by name and has not been seen with it yet;
//! - `recall`: somebody asks the holder to hand the block back;
//! - `turn`: a counter that makes every write a change.
//!
//! Each start of a replica is a new **identity** (`<pod>-<random>`), with a `Lease` of that name in macpool's own
//! namespace. Every write of either object is a compare-and-swap: PUT or DELETE with the `resourceVersion` that was
//! read, or a POST that fails if the object exists. An answer that got lost counts as "maybe": the object is read again.
//!
//! # Rules
//! 1. **Hold.** A replica swaps `holder` from nobody to itself and then gives, from memory, addresses that are neither
//!    in `taken` nor already given. It gives only while its lease is valid: until T after it *sent* the last renewal
//!    that succeeded, by its own monotonic clock.
//! 2. **Retire.** A block without free addresses, one that is recalled, and every block at shutdown goes back: memory
//!    first (nothing is given from it any more), then one swap to `holder: nobody, taken ∪= given`. Who hands a recalled
//!    block back leaves it alone until the record has changed, or for as long as a living replica can be silent: a courtesy,
//!    without which the former holder could be faster than the one who asked, again and again.
//!    A holder that finds its record deleted or written over, which none but an administrator does, or an etcd that was
//!    restored, lets the block go too, and adds what it gave to the record if nobody holds it.
//! 3. **Claim.** An address that a user asks for by name is put into `taken` and `claims` by a swap before the review is
//!    answered, whether or not it lies in the range and whether or not it was there before (`turn` changes). If the
//!    holder is another replica the claimer sets `recall` and waits for rule 2 or 4. If the holder is the claimer itself,
//!    its memory is enough.
//! 4. **Depose.** A replica that sees another's lease unchanged for T plus a margin, by its own clock, deletes that lease at
//!    the version it saw. Whose lease is gone is gone for good: a renewal is a PUT that names the lease's uid, so that it
//!    cannot make a new one; the deposed replica finds out, drops all its blocks and begins again under a new identity. A
//!    block whose holder has no lease may be swapped to `holder: nobody, taken: all`: what the dead one gave is unknown, so
//!    all of it counts as given.
//! 5. **Sweep.** Addresses become free again only here. A block that nobody holds and whose record has not changed for
//!    the grace time, by the sweeper's own clock, is compared with what exists: bits whose address no VM, VMI or pod
//!    has are cleared, by a swap at the version that was observed all the while. "What exists" is listed from etcd, not
//!    from a cache, and after the observation. A VMI counts until it is gone, so a deleted VM's address waits for its guest.
//! 6. **Own sweep.** A holder may make an address of its own block free again under the same two conditions: untouched
//!    (not given, claimed or seen) for the grace time, and absent from lists read after that.
//!
//! # Why no address is given twice
//! An address is given by rule 1 or 3 only. Call the API server's order of writes to one record its history.
//!
//! - *Two holders*: `holder` changes from nobody to one replica by a swap, so at most one replica holds by the record. A
//!   replica that holds in memory but no longer in the record has been deposed (rule 4; rule 2 forgets first). The
//!   deposer waited T after it saw version *v* of the lease and then deleted exactly *v*: no renewal succeeded after *v*,
//!   and validity from *v* or earlier was counted from before it was seen. So the deposed gives nothing any more
//!   when its blocks are swapped. Clocks need no agreement, only rates within the margin.
//! - *Holder and claimer*: a claim swaps a record that nobody holds. A holder that comes later sees the bit.
//! - *After a crash*: rule 4 sets every bit. The answer of a dead replica that is still on its way to etcd is covered as below.
//! - *After a sweep*: a bit is cleared while an object with that address is on its way to etcd? It was given either before
//!   the observation began, then it has landed or failed within the grace time (the API server bounds a request, 60 s by
//!   default, and so the grace time is at least twice that) and the lists contain it; or afterwards, then the record
//!   has changed, as giving needs a holder and claiming writes, and the swap fails. An update whose old object
//!   has the address needs no claim: the API server writes it only if that old object is still the stored one.
//! - *Stale caches* feed rule 1 only with more taken addresses, and rule 5 only with guesses at what is worth a look. A
//!   stale record makes a swap fail.
//! - *A dry run* gives nothing: it is shown an address that is free now.
//!
//! # Why no write waits
//! A create without addresses touches memory only. Blocks are held ahead of need, so API server hiccups up to the
//! validity of the lease pass unnoticed. A replica that must not give answers 503 with `Retry-After`, on which the API server
//! asks again and reaches another. A claim on an address in a live replica's current block costs a hand-over, some
//! milliseconds; in a dead one's, at most the lease time, which stays below the webhook's timeout.
//!
//! # What it rests on
//! etcd's linearizable reads and conditional writes; monotonic clocks whose rates differ by less than the margin, and that do not
//! stand still for as long as the grace time while the others go on, as that of a node does which is suspended or restored from
//! a snapshot of its memory; requests that the API server ends within half the grace time. Objects that never came through the
//! webhook (namespaces that opted out, a webhook that was switched off) are seen by the watch only, and kept free of as soon as
//! they are seen.
//!
//! Records are macpool's own: nobody else writes or deletes them. Of one that is deleted nothing in the API server says that it
//! ever was. Until its holder has noticed, by the watch and one read, another replica may take the block as one that was never
//! used, and give what the holder gives in that time or gave to objects that are still on their way to etcd. The holder puts
//! all that it knows to be taken into the record, unless another has the block by then, who keeps free of what the watch shows.
//! To close that, a replica would have to wait out all leases before it gives from a block without a record, or every holder to
//! ask before each address; or the records would need a finalizer, on which the deletion of their definition would hang when
//! macpool is uninstalled. A record that is deleted while nobody holds it takes with it the reservations of what is on its way to
//! etcd. A lease that is deleted costs nothing: its blocks count as given.
//!
//! `tests/protocol_model` explores these rules, the same functions of [`crate::record`], over all interleavings of
//! small configurations with crashes, lost answers, late writes and stale reads. It also takes each rule out in turn, the
//! compare-and-swap first, and checks that an address is then given twice.
