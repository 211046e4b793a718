//! From a review to its answer: what the NICs want, ordered from the store, written as a patch.
//!
//! Called by the server, once per review. An object that is at fault is refused with a sentence its author understands; a
//! fault of ours is an [`Answer::Unavailable`], on which the API server asks again.

use crate::review::answer::{self, PatchOp};
use crate::review::envelope::{Operation, Request, ReviewError};
use crate::review::{Refusal, Want, pod, vm};
use crate::store::{Kind, Order, OrderError, Owner, Store, Supplied};

/// HTTP statuses for refusals, which the API server passes on to the user's client.
mod status {
    pub(super) const CONFLICT: u16 = 409;
    pub(super) const UNPROCESSABLE: u16 = 422;
    pub(super) const INSUFFICIENT_STORAGE: u16 = 507;
}

/// What the server sends back.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is allowed; the body says so.
    Allowed(Vec<u8>),
    /// The request is refused; the body says why.
    Refused(Vec<u8>),
    /// The body was no review for this path.
    Bad(String),
    /// Ask again, or somebody else.
    Unavailable(String),
}

/// Answers a review of a VirtualMachine.
pub async fn virtual_machine<S: Store>(store: &S, body: &[u8]) -> Answer {
    let request = match Request::<vm::Vm<'_>>::parse(body, "virtualmachines.kubevirt.io") {
        Ok(request) => request,
        Err(error) => return unread(error),
    };
    let object = request.object.as_ref();
    let named = object.map(vm::Vm::name).unwrap_or_default();
    let generated = object.map(vm::Vm::generate_name).unwrap_or_default();
    let owner = match owner(&request, Kind::Vm, named, generated) {
        Ok(owner) => owner,
        Err(refusal) => return refuse(&request.uid, &refusal),
    };
    if request.operation == Operation::Delete {
        return forget(store, &request.uid, &owner, request.dry_run).await;
    }
    let wants = match vm::wants(&request) {
        Ok(wants) => wants,
        Err(refusal) => return refuse(&request.uid, &refusal),
    };
    let order = Order { owner: &owner, wants: &wants, dry_run: request.dry_run.unwrap_or(false) };
    match supply(store, order).await {
        Ok(Supplied { macs, warnings }) => {
            let patch: Vec<_> =
                changes(&wants, &macs).map(|(want, mac)| PatchOp::interface_mac(want.index, mac)).collect();
            allow(&request.uid, &patch, &warnings)
        }
        Err(error) => decline(&request.uid, error),
    }
}

/// Answers a review of a pod.
pub async fn pod<S: Store>(store: &S, body: &[u8]) -> Answer {
    let request = match Request::<pod::Pod<'_>>::parse(body, "pods") {
        Ok(request) => request,
        Err(error) => return unread(error),
    };
    let pod_wants = match pod::wants(&request) {
        Ok(Some(wants)) => wants,
        Ok(None) => return allow(&request.uid, &[], &[]),
        Err(refusal) => return refuse(&request.uid, &refusal),
    };
    let generated = request.object.as_ref().map(pod::Pod::generate_name).unwrap_or_default();
    let owner = match owner(&request, Kind::Pod, "", generated) {
        Ok(owner) => owner,
        Err(refusal) => return refuse(&request.uid, &refusal),
    };
    let wants = &pod_wants.wants;
    let order = Order { owner: &owner, wants, dry_run: request.dry_run.unwrap_or(false) };
    let Supplied { macs, warnings } = match supply(store, order).await {
        Ok(supplied) => supplied,
        Err(error) => return decline(&request.uid, error),
    };
    let changes: Vec<_> = changes(wants, &macs).map(|(want, mac)| (want.index, mac)).collect();
    if changes.is_empty() {
        return allow(&request.uid, &[], &warnings);
    }
    match pod_wants.with(changes) {
        Ok(annotation) => allow(&request.uid, &[PatchOp::annotation(pod::NETWORKS, annotation)], &warnings),
        Err(error) => Answer::Unavailable(format!("write the annotation: {error}")),
    }
}

async fn supply<S: Store>(store: &S, order: Order<'_>) -> Result<Supplied, OrderError> {
    if order.wants.is_empty() { Ok(Supplied::default()) } else { store.order(order).await }
}

async fn forget<S: Store>(store: &S, uid: &str, owner: &Owner, dry_run: Option<bool>) -> Answer {
    if dry_run == Some(true) {
        return allow(uid, &[], &[]);
    }
    match store.forget(owner).await {
        Ok(()) => allow(uid, &[], &[]),
        Err(error) => decline(uid, error),
    }
}

/// The addresses that the object does not have yet.
fn changes<'a>(
    wants: &'a [Want],
    macs: &'a [net_types::Mac],
) -> impl Iterator<Item = (&'a Want, net_types::Mac)> {
    use crate::review::Address;
    wants
        .iter()
        .zip(macs)
        .filter(|(want, _)| !matches!(want.address, Address::Named(_) | Address::Moved(_)))
        .map(|(w, m)| (w, *m))
}

/// What the API server keeps of the start of a name that it makes up (maxGeneratedNameLength in k8s.io/apiserver's
/// storage/names).
const MAX_GENERATED: usize = 58;
/// What a record takes (`claims` in deploy/macpool/crd.yaml), in bytes, without the word for the kind. A namespace has up to 63,
/// a name up to 253; but names are reviewed before the API server looks at them.
const MAX_KEY: usize = 500;

/// Whose review it is. Two objects whose names are still to be made up are two owners; one that is reviewed again, as its first
/// answer got lost, is the same.
fn owner<T>(
    request: &Request<'_, T>,
    kind: Kind,
    named: &str,
    generate_name: &str,
) -> Result<Owner, Refusal> {
    let Request { namespace, name, uid, .. } = request;
    let key = match [name, named].into_iter().find(|name| !name.is_empty()) {
        Some(name) => format!("{namespace}/{name}"),
        None => {
            let start = generate_name.get(..MAX_GENERATED).unwrap_or(generate_name);
            format!("{namespace}/{start}*{uid}")
        }
    };
    match key.len() {
        ..=MAX_KEY => Ok(Owner { kind, key: key.into() }),
        long => Err(Refusal::LongName(long)),
    }
}

fn unread(error: ReviewError) -> Answer {
    match error {
        ReviewError::Object { uid, message } => refuse(&uid, &Refusal::Malformed(message)),
        ReviewError::Json(ref source) => Answer::Bad(format!("{error}: {source}")),
        ReviewError::Kind { .. } | ReviewError::NoRequest | ReviewError::Resource { .. } => {
            Answer::Bad(error.to_string())
        }
    }
}

fn allow(uid: &str, patch: &[PatchOp], warnings: &[String]) -> Answer {
    match answer::allow(uid, patch, warnings) {
        Ok(body) => Answer::Allowed(body),
        Err(error) => Answer::Unavailable(format!("write the answer: {error}")),
    }
}

fn refuse(uid: &str, refusal: &Refusal) -> Answer {
    refused(uid, status::UNPROCESSABLE, &refusal.to_string())
}

fn decline(uid: &str, error: OrderError) -> Answer {
    let code = match &error {
        OrderError::Full { .. } => status::INSUFFICIENT_STORAGE,
        OrderError::Duplicate { .. } => status::CONFLICT,
        OrderError::NoName => status::UNPROCESSABLE,
        OrderError::Unavailable(_) => return Answer::Unavailable(error.to_string()),
    };
    refused(uid, code, &error.to_string())
}

fn refused(uid: &str, code: u16, message: &str) -> Answer {
    match answer::refuse(uid, code, message) {
        Ok(body) => Answer::Refused(body),
        Err(error) => Answer::Unavailable(format!("write the answer: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use net_types::Mac;
    use serde_json::json;

    use super::*;
    use crate::review::Address;
    use crate::segment::Segment;

    #[test]
    fn only_what_the_object_lacks_is_written() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let all = [
            Address::Any,
            Address::Named(mac),
            Address::Restored(mac),
            Address::Carried(mac),
            Address::Moved(mac),
        ];
        let wants =
            all.map(|address| Want { index: 0, nic: String::new(), address, segment: Segment::Alone });
        let written: Vec<_> = changes(&wants, &[mac; 5]).map(|(want, _)| want.address).collect();
        assert_eq!(written, [Address::Any, Address::Restored(mac), Address::Carried(mac)]);
    }

    #[test]
    fn an_owner_has_the_name_it_has_or_is_told_by_its_review() {
        let key = |name: &str, in_object: &str| {
            let review = json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
                    "uid": "u-1", "operation": "CREATE", "namespace": "ns", "name": name,
                    "resource": {"group": "", "version": "v1", "resource": "pods"},
                },
            });
            let body = review.to_string();
            let request = Request::<'_, pod::Pod<'_>>::parse(body.as_bytes(), "pods").unwrap();
            owner(&request, Kind::Pod, in_object, "web-").unwrap().key.into_string()
        };
        assert_eq!(key("vm", ""), "ns/vm");
        assert_eq!(key("", "vm"), "ns/vm");
        assert_eq!(key("", ""), "ns/web-*u-1");
    }
}
