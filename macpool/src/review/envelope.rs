//! The AdmissionReview (admission.k8s.io/v1) around an object.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use objects_only::ObjectsOnly;

/// A review's most bytes. The API server takes objects up to 3 MiB, and an update carries two.
pub const MAX_REVIEW: usize = 8 << 20;

/// What is done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is new.
    Create,
    /// It changes.
    Update,
    /// It goes.
    Delete,
    /// A sub-resource is connected to.
    Connect,
}

/// A request about an object of type `T`. Borrows from the body.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Deserialize<'de>"))]
pub struct Request<'a, T> {
    /// To be repeated in the answer.
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    #[serde(borrow)]
    resource: Resource<'a>,
    /// The object's namespace.
    #[serde(borrow, default)]
    pub namespace: Cow<'a, str>,
    /// The object's name; empty if the API server is to make one up.
    #[serde(borrow, default)]
    pub name: Cow<'a, str>,
    /// What is done.
    pub operation: Operation,
    /// True if nothing will be stored.
    #[serde(default)]
    pub dry_run: Option<bool>,
    /// As it will be.
    pub object: Option<T>,
    /// As it is stored.
    pub old_object: Option<T>,
}

#[derive(Debug, Default, Deserialize)]
struct Resource<'a> {
    #[serde(borrow, default)]
    group: Cow<'a, str>,
    #[serde(borrow, default)]
    resource: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Deserialize<'de>"))]
struct Review<'a, T> {
    #[serde(borrow)]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    request: Option<Request<'a, T>>,
}

/// Only what a refusal of the object needs.
#[derive(Deserialize)]
struct Bare<'a> {
    #[serde(borrow)]
    request: BareRequest<'a>,
}

#[derive(Deserialize)]
struct BareRequest<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

/// Why a body is no review that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// No JSON, or not the fields that every review has.
    #[error("the body is no AdmissionReview")]
    Json(#[source] serde_json::Error),
    /// Another kind or version.
    #[error("the body is a {kind:?} of {api_version:?}, not an AdmissionReview of \"admission.k8s.io/v1\"")]
    Kind {
        /// Its apiVersion.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// A review with an answer instead.
    #[error("the review has no request")]
    NoRequest,
    /// Sent to the wrong path.
    #[error("the review is about {got:?}, but this path takes {expected:?}")]
    Resource {
        /// `resource.group` of the review.
        got: String,
        /// What the path is for.
        expected: &'static str,
    },
    /// A review that can be answered, of an object that cannot be read.
    #[error("the object is malformed: {message}")]
    Object {
        /// The request's uid.
        uid: String,
        /// Where and why.
        message: String,
    },
}

impl<'a, T: Deserialize<'a> + fmt::Debug> Request<'a, T> {
    /// Reads a review about `resource` (as `virtualmachines.kubevirt.io`, or `pods` of the core group).
    pub fn parse(body: &'a [u8], resource: &'static str) -> Result<Self, ReviewError> {
        let review: Review<'a, T> = match read(body) {
            Ok(review) => review,
            Err(error) => return Err(about_object(body, error)),
        };
        let Review { api_version, kind, request } = review;
        if api_version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
            return Err(ReviewError::Kind { api_version: api_version.into_owned(), kind: kind.into_owned() });
        }
        let request = request.ok_or(ReviewError::NoRequest)?;
        let Resource { group, resource: plural } = &request.resource;
        let (expected_plural, expected_group) = resource.split_once('.').unwrap_or((resource, ""));
        if plural != expected_plural || group != expected_group {
            return Err(ReviewError::Resource { got: format!("{plural}.{group}"), expected: resource });
        }
        Ok(request)
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = T::deserialize(ObjectsOnly(&mut json))?;
    json.end()?;
    Ok(value)
}

/// Tells a malformed object in a good review, which deserves a proper answer, from a malformed review.
fn about_object(body: &[u8], error: serde_json::Error) -> ReviewError {
    let envelope: Result<Review<'_, IgnoredAny>, _> = read(body);
    let bare: Result<Bare<'_>, _> = read(body);
    match (envelope, bare) {
        (Ok(_), Ok(Bare { request: BareRequest { uid } })) => {
            ReviewError::Object { uid: uid.into_owned(), message: error.to_string() }
        }
        _ => ReviewError::Json(error),
    }
}
