//! Kubernetes quantities: `512Mi`, `2G`, `1.5Gi`, `1e9`.
//!
//! Source: `k8s.io/apimachinery/pkg/api/resource/quantity.go` (grammar in the comment on `Quantity`). Only amounts
//! of bytes are needed here, so the suffixes below one (`m`, `u`, `n`) are refused unless the amount comes out whole.

/// Why a text is no amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an amount of bytes (a number with an optional suffix: Ki Mi Gi Ti Pi Ei, k M G T P E)")]
pub struct QuantityError(String);

/// The bytes a quantity stands for, rounded up to a whole byte as Kubernetes does.
pub fn bytes(text: &str) -> Result<u64, QuantityError> {
    parse(text).ok_or_else(|| QuantityError(text.to_owned()))
}

fn parse(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return None;
    }
    // Exact in integers: value = mantissa * numerator / denominator, rounded up.
    let mantissa = format!("{whole}{fraction}").parse::<u128>().ok()?;
    let (multiplier, divider) = scale(suffix)?;
    let denominator = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(divider)?;
    let bytes = mantissa.checked_mul(multiplier)?.div_ceil(denominator);
    // Kubernetes keeps quantities in an int64.
    u64::try_from(bytes).ok().filter(|bytes| i64::try_from(*bytes).is_ok())
}

fn digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A suffix as (multiplier, divider).
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let power = |base: u128, exponent: u32| Some((base.pow(exponent), 1));
    match suffix {
        "" => Some((1, 1)),
        "Ki" => power(1024, 1),
        "Mi" => power(1024, 2),
        "Gi" => power(1024, 3),
        "Ti" => power(1024, 4),
        "Pi" => power(1024, 5),
        "Ei" => power(1024, 6),
        "k" => power(1000, 1),
        "M" => power(1000, 2),
        "G" => power(1000, 3),
        "T" => power(1000, 4),
        "P" => power(1000, 5),
        "E" => power(1000, 6),
        "m" => Some((1, 1000)),
        _ => exponent(suffix),
    }
}

/// A decimal exponent: `e9`, `E9`, `e-3`.
fn exponent(suffix: &str) -> Option<(u128, u128)> {
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?;
    let power = 10u128.checked_pow(u32::from(exponent.unsigned_abs()))?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_kubernetes_takes_is_taken() {
        for (text, expected) in [
            ("0", 0),
            ("1024", 1024),
            ("1Ki", 1024),
            ("512Mi", 512 << 20),
            ("1.5Gi", 3 << 29),
            (".5Gi", 1 << 29),
            ("1.", 1),
            ("2G", 2_000_000_000),
            ("1e9", 1_000_000_000),
            ("1E3", 1000),
            ("12e-1", 2),
            ("128000m", 128),
            ("+1k", 1000),
            ("0.3", 1),
            ("7Ei", 7 << 60),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_and_named() {
        for text in [
            "", "Mi", ".", "-1", "1 Gi", "1Gb", "1GiB", "1K", "1mi", "1.2.3", "9Ei", "e9", "1e", "1e99",
            "0x10", "١",
        ] {
            let error = bytes(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not an amount of bytes")), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = bytes(&text);
        }
    }
}
