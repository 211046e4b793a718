//! The `ctl` command: asks a running daemon, prints what it says.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::Context as _;

use crate::cli::Ask;
use crate::control::client::ask;
use crate::control::message::{Command, Done};

/// Asks and prints.
pub(crate) fn run(socket: &Path, question: Ask) -> anyhow::Result<()> {
    let mut listed = None;
    let mut output = None;
    let mut most = None;
    let command = match question {
        Ask::Add { link } => Command::Add { ends: link.text(), name: link.name },
        Ask::Remove { name } => Command::Remove { name },
        Ask::List { name } => {
            listed.clone_from(&name);
            Command::List { name }
        }
        Ask::Stats { name } => Command::Stats { name },
        Ask::Capture { name, output: file, snap, count } => {
            (output, most) = (file, count);
            Command::Capture { name, snap }
        }
    };
    let (done, mut stream) = ask(socket, command)?;
    if let (Done::Links(links), Some(name)) = (&done, listed)
        && links.is_empty()
    {
        anyhow::bail!("there is no link {name}");
    }
    let mut stdout = io::stdout().lock();
    match done {
        Done::Capturing(_) => {
            // Frames may be rare.
            stream.get_ref().set_read_timeout(None)?;
            match output {
                None => unless_left(copy(&mut stream, &mut stdout, most)),
                Some(path) => {
                    let mut file =
                        File::create(&path).with_context(|| format!("create {}", path.display()))?;
                    copy(&mut stream, &mut file, most)
                }
            }
            .context("copy the capture")
        }
        done => {
            let text = serde_json::to_string_pretty(&done)? + "\n";
            Ok(unless_left(stdout.write_all(text.as_bytes()))?)
        }
    }
}

/// Whoever reads what is printed may leave when he has seen enough: `| head`, `| tcpdump -c 1 -r -`.
fn unless_left(written: io::Result<()>) -> io::Result<()> {
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Copies a pcap file, up to so many frames, each written at once.
fn copy(from: &mut impl Read, to: &mut impl Write, most: Option<u64>) -> io::Result<()> {
    const HEAD: usize = 24;
    const FRAME_HEAD: u64 = 16;
    let mut head = [0; HEAD];
    from.read_exact(&mut head)?;
    to.write_all(&head)?;
    to.flush()?;
    let mut frames = 0;
    while most.is_none_or(|most| frames < most) {
        let mut bytes = Vec::new();
        from.by_ref().take(FRAME_HEAD).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            // The link is gone.
            break;
        }
        let kept = bytes.get(8..12).and_then(|field| field.try_into().ok()).map_or(0, u32::from_ne_bytes);
        from.by_ref().take(kept.into()).read_to_end(&mut bytes)?;
        // A part of a frame would spoil the file.
        if bytes.len() as u64 != FRAME_HEAD + u64::from(kept) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&bytes)?;
        to.flush()?;
        frames += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pcap file with two frames of 60 bytes.
    fn file() -> Vec<u8> {
        let mut bytes = vec![0; 24];
        for _ in 0..2 {
            bytes.extend([[0; 4], [0; 4], 60_u32.to_ne_bytes(), 60_u32.to_ne_bytes()].concat());
            bytes.extend([7; 60]);
        }
        bytes
    }

    #[test]
    fn only_whole_frames_are_copied_however_the_connection_ends() {
        const ENDS: [usize; 3] = [24, 24 + 76, 24 + 2 * 76];
        let whole = file();
        for length in 24..=whole.len() {
            let mut copied = Vec::new();
            let result = copy(&mut whole.get(..length).unwrap(), &mut copied, None);
            let end = *ENDS.iter().rfind(|end| **end <= length).unwrap();
            assert_eq!((result.is_ok(), copied.as_slice()), (length == end, &whole[..end]), "{length}");
        }
        let mut one = Vec::new();
        copy(&mut whole.as_slice(), &mut one, Some(1)).unwrap();
        assert_eq!(one, whole[..ENDS[1]]);
    }
}
