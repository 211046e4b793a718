//! TSIG (RFC 8945): keys, checking a request, signing what answers it.
//!
//! hickory computes and compares the MACs; kept here is what it leaves to a server: finding the key, judging the
//! time, the unsigned and the signed kinds of error, and the chain of MACs over the messages of a transfer.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::ProtoError;
use hickory_proto::dnssec::DnsSecError;
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::tsig::{TSIG, TsigAlgorithm, TsigError, make_tsig_record};
use hickory_proto::rr::{Name, Record, TSigner};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

/// Seconds that clocks may differ.
const FUDGE: u16 = 300;

/// Why keys could not be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not readable.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is no key. It is not shown: it may be most of one.
    #[error("{} line {line}: expected algorithm:name:secret, as for dig -y, with {expected}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What was not as it should be.
        expected: &'static str,
    },
}

/// The keys we share with others, by name.
#[derive(Default, Clone)]
pub struct Keyring(Vec<TSigner>);

impl std::fmt::Debug for Keyring {
    /// Names only: secrets stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.signer_name().to_string())).finish()
    }
}

impl Keyring {
    /// Reads a file with one `algorithm:name:secret` a line, the secret in base64; `#` begins a comment.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text =
            fs::read_to_string(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })?;
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                let wrong = |expected| KeyError::Line { path: path.to_owned(), line: number + 1, expected };
                keys.push(parse_key(line).map_err(wrong)?);
            }
        }
        Ok(Self(keys))
    }

    /// The key called `name`.
    pub fn get(&self, name: &Name) -> Option<&TSigner> {
        self.0.iter().find(|key| key.signer_name() == name)
    }

    /// Checks the signature of a request, given decoded and as it came.
    pub(super) fn verify(&self, request: &Message, octets: &[u8], now: SystemTime) -> Verdict {
        let Some(record) = request.signature() else { return Verdict::Unsigned };
        let now = seconds(now);
        let unsigned = |error: TsigError| {
            let TSIG { algorithm, fudge, .. } = &record.data;
            let answer =
                TSIG::new(algorithm.clone(), now, *fudge, Vec::new(), request.id, Some(error), Vec::new());
            let record = Some(Box::new(make_tsig_record(record.name.clone(), answer)));
            Verdict::Invalid { record, session: None }
        };
        let Some(key) = self.get(&record.name).filter(|key| *key.algorithm() == record.data.algorithm) else {
            return unsigned(TsigError::BadKey);
        };
        let Ok((mac, time, _)) = key.verify_message_byte(octets, None, true) else {
            return unsigned(TsigError::BadSig);
        };
        let mut session = Session { key: key.clone(), mac, id: request.id, first: true, bad_time: None };
        if now.abs_diff(time) <= u64::from(FUDGE) {
            return Verdict::Valid(session);
        }
        session.bad_time = Some(time);
        Verdict::Invalid { record: None, session: Some(session) }
    }
}

fn parse_key(line: &str) -> Result<TSigner, &'static str> {
    let mut parts = line.splitn(3, ':');
    let algorithm = match parts.next() {
        Some("hmac-sha256") => TsigAlgorithm::HmacSha256,
        Some("hmac-sha384") => TsigAlgorithm::HmacSha384,
        Some("hmac-sha512") => TsigAlgorithm::HmacSha512,
        _ => return Err("the algorithm hmac-sha256, hmac-sha384 or hmac-sha512"),
    };
    let name = parts.next().filter(|name| !name.is_empty()).and_then(|name| Name::from_ascii(name).ok());
    let name = name.ok_or("a name that is a domain name")?;
    let secret = parts.next().and_then(|secret| STANDARD.decode(secret.trim()).ok());
    let secret =
        secret.filter(|secret| secret.len() >= 16).ok_or("a secret of at least 16 octets in base64")?;
    TSigner::new(secret, algorithm, name.to_lowercase(), FUDGE)
        .map_err(|_unsupported| "a supported algorithm")
}

/// What a request's signature is worth.
pub(super) enum Verdict {
    /// There is none.
    Unsigned,
    /// It is right.
    Valid(Session),
    /// It is wrong: reply NOTAUTH, with this record, or signed by this session.
    Invalid {
        /// For wrong keys and signatures, which are answered unsigned (RFC 8945 sections 5.2.1, 5.2.2).
        record: Option<Box<Record<TSIG>>>,
        /// For a wrong time, which is answered signed (section 5.2.3).
        session: Option<Session>,
    },
}

/// Signs the messages that answer one request, or a request of our own.
pub struct Session {
    key: TSigner,
    /// The MAC before: the request's, then our own last.
    mac: Vec<u8>,
    id: u16,
    first: bool,
    /// The request's time, if it was too far from ours.
    bad_time: Option<u64>,
}

/// A message could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Encoding failed.
    #[error("encode the TSIG record")]
    Encode(#[from] ProtoError),
    /// The MAC could not be computed.
    #[error("compute the MAC")]
    Mac(#[from] DnsSecError),
}

impl Session {
    /// The name of the key.
    pub fn key(&self) -> &Name {
        self.key.signer_name()
    }

    /// Octets that [`Self::sign`] will append. One key's MACs are all of one length.
    pub(super) fn room(&self, now: SystemTime) -> usize {
        length(&self.record(self.unsigned(now), &self.mac))
    }

    /// Appends the TSIG record to an encoded message.
    pub fn sign(&mut self, message: &mut Vec<u8>, now: SystemTime) -> Result<(), SignError> {
        let tsig = self.unsigned(now);
        let signed = if self.first {
            self.key.encode_response_tbs(&self.mac, message, &tsig)?
        } else {
            following(&self.mac, message, tsig.time)
        };
        self.mac = self.key.sign(&signed)?;
        self.first = false;
        append(message, &self.record(tsig, &self.mac));
        Ok(())
    }

    /// The signature's data without the MAC.
    fn unsigned(&self, now: SystemTime) -> TSIG {
        let now = seconds(now);
        // A wrong time is answered with the client's time, and ours beside it.
        let (time, error, other) = match self.bad_time {
            None => (now, None, Vec::new()),
            Some(theirs) => (theirs, Some(TsigError::BadTime), now.to_be_bytes()[2..].to_vec()),
        };
        TSIG::new(self.key.algorithm().clone(), time, FUDGE, Vec::new(), self.id, error, other)
    }

    fn record(&self, tsig: TSIG, mac: &[u8]) -> Record<TSIG> {
        make_tsig_record(self.key.signer_name().clone(), tsig.set_mac(mac.to_vec()))
    }
}

/// What the MAC of a second or later message covers (RFC 8945 section 5.3.1).
fn following(mac: &[u8], message: &[u8], time: u64) -> Vec<u8> {
    let length = u16::try_from(mac.len()).unwrap_or_default();
    let [_, _, time @ ..] = time.to_be_bytes();
    [&length.to_be_bytes()[..], mac, message, &time, &FUDGE.to_be_bytes()].concat()
}

/// A record in octets: none, if it cannot be written.
fn encoded(record: &Record<TSIG>) -> Vec<u8> {
    let mut octets = Vec::new();
    match record.emit(&mut BinEncoder::new(&mut octets)) {
        Ok(()) => octets,
        Err(_too_long) => Vec::new(),
    }
}

/// Octets that [`append`] will add.
pub(super) fn length(record: &Record<TSIG>) -> usize {
    encoded(record).len()
}

/// Appends a record to the additional section of an encoded message.
pub(super) fn append(message: &mut Vec<u8>, record: &Record<TSIG>) {
    let octets = encoded(record);
    if octets.is_empty() {
        return;
    }
    if let Some([high, low]) = message.get_mut(10..12) {
        [*high, *low] = u16::from_be_bytes([*high, *low]).saturating_add(1).to_be_bytes();
        message.extend_from_slice(&octets);
    }
}

/// Seconds since 1970, as TSIG counts.
pub(crate) fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hickory_proto::op::Query;
    use hickory_proto::rr::RecordType;

    use super::*;

    fn keyring() -> Keyring {
        Keyring(vec![parse_key("hmac-sha256:Corp.Key:c2VjcmV0IHNlY3JldCBzZWNyZXQ=").unwrap()])
    }

    /// A request signed at a moment.
    fn request(moment: SystemTime) -> (Message, Vec<u8>) {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("vm.example.com.").unwrap(), RecordType::SOA));
        message.finalize(&keyring().0[0], seconds(moment)).unwrap();
        let octets = message.to_vec().unwrap();
        (Message::from_vec(&octets).unwrap(), octets)
    }

    #[test]
    fn a_signature_is_worth_its_time_and_not_more() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (message, octets) = request(now);
        let judge = |later: u64| keyring().verify(&message, &octets, now + Duration::from_secs(later));
        assert!(matches!(judge(0), Verdict::Valid(_)));
        assert!(matches!(judge(300), Verdict::Valid(_)));
        let Verdict::Invalid { record: None, session: Some(mut session) } = judge(301) else {
            panic!("a late signature is refused, and that is signed");
        };
        let mut reply = Message::response(message.id, message.op_code).to_vec().unwrap();
        session.sign(&mut reply, now + Duration::from_secs(301)).unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        let tsig = &reply.signature().unwrap().data;
        assert_eq!((tsig.error, tsig.time), (Some(TsigError::BadTime), seconds(now)));
        assert_eq!(tsig.other, (seconds(now) + 301).to_be_bytes()[2..]);
    }

    #[test]
    fn a_changed_message_and_an_unknown_key_are_refused_unsigned() {
        let now = SystemTime::now();
        let (message, mut octets) = request(now);
        assert!(matches!(
            Keyring::default().verify(&message, &octets, now),
            Verdict::Invalid { record: Some(_), .. }
        ));
        octets[14] ^= 1;
        assert!(matches!(keyring().verify(&message, &octets, now), Verdict::Invalid { record: Some(_), .. }));
    }

    #[test]
    fn a_bad_line_is_named_but_its_secret_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for line in [
            "hmac-md5:k:c2VjcmV0IHNlY3JldCBzZWNyZXQ=",
            "hmac-sha256::c2VjcmV0",
            "hmac-sha256:k:!",
            "hmac-sha256:k:c2g=",
        ] {
            fs::write(file.path(), format!("# keys\n\n{line}\n")).unwrap();
            let error = Keyring::read(file.path()).unwrap_err().to_string();
            assert!(error.contains("line 3") && !error.contains("c2V"), "{error}");
        }
    }
}
