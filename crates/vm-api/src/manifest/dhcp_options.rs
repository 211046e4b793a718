//! `dhcpOptions` of an interface: what a guest that is told its addresses by DHCPv4 is told besides.

use std::net::Ipv4Addr;

use super::check::{At, FieldError};
use super::raw;
use super::spec::DhcpOptions;

/// Codes of `privateOptions` (RFC 3942: 224 to 254 are for private use).
const PRIVATE_CODES: std::ops::RangeInclusive<i64> = 224..=254;
/// Longest text of one DHCP option, in bytes.
const OPTION_BYTES: usize = 255;

/// Checks them; `at` is the field.
pub(super) fn checked(raw: raw::DhcpOptions, at: &At) -> Result<DhcpOptions, FieldError> {
    let raw::DhcpOptions { boot_file_name, tftp_server_name, ntp_servers, private_options } = raw;
    let optional = |text: Option<String>, field: &str| {
        text.filter(|text| !text.is_empty()).map(|text| option_text(text, &at.field(field))).transpose()
    };
    let ntp_servers = ntp_servers.into_iter().enumerate().map(|(index, text)| {
        let server = text.parse().ok().filter(|server: &Ipv4Addr| !server.is_unspecified());
        let at = at.field("ntpServers").item(index);
        server.ok_or_else(|| at.not_allowed(text, "an IPv4 address; DHCPv4 tells no others"))
    });
    let private =
        private_options.into_iter().enumerate().map(|(index, raw::PrivateOption { option, value })| {
            let at = at.field("privateOptions").item(index);
            let code = u8::try_from(option).ok().filter(|_| PRIVATE_CODES.contains(&option));
            let code = code.ok_or_else(|| at.field("option").not_allowed(option, "224 to 254"))?;
            Ok((code, option_text(value, &at.field("value"))?))
        });
    let private: Vec<(u8, String)> = private.collect::<Result<_, _>>()?;
    if let Some((code, _)) = repeated(&private) {
        return Err(at.field("privateOptions").conflict(format!("option {code} is there twice")));
    }
    Ok(DhcpOptions {
        boot_file_name: optional(boot_file_name, "bootFileName")?,
        tftp_server_name: optional(tftp_server_name, "tftpServerName")?,
        ntp_servers: ntp_servers.collect::<Result<_, _>>()?,
        private,
    })
}

fn repeated(options: &[(u8, String)]) -> Option<&(u8, String)> {
    let is_second = |(index, (code, _)): &(usize, &(u8, String))| {
        options.iter().take(*index).any(|(earlier, _)| earlier == code)
    };
    options.iter().enumerate().find(is_second).map(|(_, option)| option)
}

fn option_text(text: String, at: &At) -> Result<String, FieldError> {
    if (1..=OPTION_BYTES).contains(&text.len()) {
        return Ok(text);
    }
    Err(at.not_allowed(text, "1 to 255 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(yaml: &str) -> Result<DhcpOptions, FieldError> {
        let mut documents = crate::yaml::documents(yaml).unwrap();
        checked(serde_json::from_value(documents.remove(0)).unwrap(), &At("dhcpOptions".to_owned()))
    }

    #[test]
    fn all_of_them_are_read() {
        let options = options(
            "
bootFileName: pxe
tftpServerName: tftp.example
ntpServers: [192.0.2.1]
privateOptions: [{option: 240, value: hello}]
",
        )
        .unwrap();
        let expected = DhcpOptions {
            boot_file_name: Some("pxe".to_owned()),
            tftp_server_name: Some("tftp.example".to_owned()),
            ntp_servers: vec![Ipv4Addr::new(192, 0, 2, 1)],
            private: vec![(240, "hello".to_owned())],
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (yaml, path, problem) in [
            ("ntpServers: ['::1']", "ntpServers[0]", "an IPv4 address"),
            ("privateOptions: [{option: 223, value: x}]", "privateOptions[0].option", "224 to 254"),
            ("privateOptions: [{option: 224}]", "privateOptions[0].value", "1 to 255 bytes"),
            (
                "privateOptions: [{option: 224, value: x}, {option: 224, value: z}]",
                "privateOptions",
                "option 224 is there twice",
            ),
        ] {
            let FieldError { path: found, problem: what } = options(yaml).unwrap_err();
            assert_eq!(found, format!("dhcpOptions.{path}"));
            assert!(what.to_string().contains(problem), "{what}");
        }
    }
}
