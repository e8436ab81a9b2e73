//! Lines that processes write to stdout and stderr.

use std::{io::Read, sync::Arc};

/// Longest line; the rest of a longer one is a line of its own.
const MAX_LINE: usize = 8 * 1024;
/// Bytes of output that are reported for one job, or between two jobs. The rest is read and
/// discarded, so that a process that prints without end is neither blocked nor heard.
const MAX_REPORTED: usize = 1024 * 1024;
/// Bytes that are read from one stream in a row, so that a process that prints without end does not
/// keep a thread from others.
const MAX_READ: usize = 64 * 1024;
/// Bytes of stderr that are kept for the error of a process that does not start.
const MAX_TAIL: usize = 1024;

/// A line that a worker process wrote to stdout or stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutputLine<'a> {
    /// The stream.
    pub stream: OutputStream,
    /// Process id of the worker process.
    pub pid: u32,
    /// The job that was running: its number and its [kind](super::Work::KIND).
    pub job: Option<(u64, &'a str)>,
    /// The line without its end, at most 8 KiB. Invalid UTF-8 is replaced.
    pub text: &'a str,
}

/// A stream that a process writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    /// Returns `"stdout"` or `"stderr"`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Receives the lines of a pool's processes.
pub(super) type OnOutput = Arc<dyn Fn(&OutputLine<'_>) + Send + Sync>;

/// Reports a line, in an event and to the callback of the pool.
pub(super) fn report(pool: &str, line: &OutputLine<'_>, on_output: Option<&OnOutput>) {
    #[cfg(feature = "tracing")]
    tracing::event!(
        tracing::Level::INFO,
        pool,
        pid = line.pid,
        job = line.job.map(|(job, _)| job),
        kind = line.job.map(|(_, kind)| kind),
        stream = line.stream.as_str(),
        line = line.text,
        "process output"
    );
    let _ = pool;
    if let Some(on_output) = on_output {
        on_output(line);
    }
}

/// The two streams of one process, split into lines.
#[derive(Debug)]
pub(super) struct Output {
    pid: u32,
    /// The job that is running.
    job: Option<(u64, &'static str)>,
    stdout: Lines,
    stderr: Lines,
    /// Bytes that were reported since the job has started or ended.
    reported: usize,
    /// The last bytes of stderr, until the process is ready.
    tail: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Lines {
    /// The beginning of a line, at most `MAX_LINE` bytes.
    partial: Vec<u8>,
    is_closed: bool,
}

impl Output {
    pub(super) fn new(pid: u32) -> Self {
        let (stdout, stderr) = (Lines::default(), Lines::default());
        Self { pid, job: None, stdout, stderr, reported: 0, tail: Some(Vec::new()) }
    }

    /// Attributes what is read from now on to a job, or to none. To be called after everything that
    /// the process wrote before was read.
    pub(super) fn set_job(&mut self, job: Option<(u64, &'static str)>, report: &mut dyn FnMut(&OutputLine<'_>)) {
        self.finish_lines(report);
        (self.job, self.reported) = (job, 0);
    }

    /// Ends the last lines, which may have no line feed.
    pub(super) fn finish_lines(&mut self, report: &mut dyn FnMut(&OutputLine<'_>)) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let line = std::mem::take(&mut self.lines(stream).partial);
            if !line.is_empty() {
                self.report(stream, &line, report);
            }
        }
    }

    /// Forgets the beginning of stderr, which describes a failure to start.
    pub(super) fn on_ready(&mut self) {
        self.tail = None;
    }

    /// Returns the end of stderr, if the process was not ready.
    pub(super) fn tail(&self) -> String {
        String::from_utf8_lossy(self.tail.as_deref().unwrap_or_default()).trim().to_owned()
    }

    pub(super) fn is_closed(&self, stream: OutputStream) -> bool {
        match stream {
            OutputStream::Stdout => self.stdout.is_closed,
            OutputStream::Stderr => self.stderr.is_closed,
        }
    }

    /// Reads what a stream contains, up to a limit. Returns the number of bytes that were
    /// discarded.
    pub(super) fn read(
        &mut self,
        stream: OutputStream,
        mut source: impl Read,
        report: &mut dyn FnMut(&OutputLine<'_>),
    ) -> u64 {
        let (mut total, mut discarded) = (0, 0);
        let mut buffer = [0; 4096];
        while total < MAX_READ && !self.is_closed(stream) {
            match source.read(&mut buffer) {
                Ok(0) => self.lines(stream).is_closed = true,
                Ok(len) => {
                    total += len;
                    discarded += self.push(stream, &buffer[..len], report);
                    if len < buffer.len() {
                        break; // Most likely all: another read costs a system call.
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => self.lines(stream).is_closed = true,
            }
        }
        discarded
    }

    fn lines(&mut self, stream: OutputStream) -> &mut Lines {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }

    /// Splits bytes into lines. Returns the number of bytes that were discarded.
    fn push(&mut self, stream: OutputStream, bytes: &[u8], report: &mut dyn FnMut(&OutputLine<'_>)) -> u64 {
        if let (OutputStream::Stderr, Some(tail)) = (stream, &mut self.tail) {
            tail.extend_from_slice(bytes);
            tail.drain(..tail.len().saturating_sub(MAX_TAIL));
        }
        let room = MAX_REPORTED.saturating_sub(self.reported).min(bytes.len());
        self.reported += room;
        for piece in bytes[..room].split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(MAX_LINE) {
                let line = &mut self.lines(stream).partial;
                if line.len() + part.len() > MAX_LINE {
                    let full = std::mem::take(line);
                    self.report(stream, &full, report);
                }
                self.lines(stream).partial.extend_from_slice(part);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.lines(stream).partial);
                self.report(stream, &line[..line.len() - 1], report);
            }
        }
        (bytes.len() - room) as u64
    }

    fn report(&self, stream: OutputStream, line: &[u8], report: &mut dyn FnMut(&OutputLine<'_>)) {
        let text = String::from_utf8_lossy(line);
        report(&OutputLine { stream, pid: self.pid, job: self.job, text: &text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> (Vec<String>, u64) {
        let (mut output, mut lines) = (Output::new(1), Vec::new());
        output.set_job(Some((7, "kind")), &mut |_| {});
        let mut discarded = 0;
        let mut keep = |line: &OutputLine<'_>| {
            assert_eq!(line.job, Some((7, "kind")));
            lines.push(line.text.to_owned());
        };
        for chunk in chunks {
            discarded += output.push(OutputStream::Stdout, chunk, &mut keep);
        }
        output.set_job(None, &mut keep);
        (lines, discarded)
    }

    #[test]
    fn lines_are_reported_whole_and_the_last_one_at_the_end() {
        assert_eq!(lines_of(&[b"a", b"b\n\nc\nd"]).0, ["ab", "", "c", "d"]);
    }

    #[test]
    fn long_line_is_split() {
        let (lines, _) = lines_of(&[&vec![b'x'; 2 * MAX_LINE + 1], b"y\nz\n"]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 2, 1]);
    }

    #[test]
    fn output_over_the_limit_is_discarded() {
        let chunk = vec![b'\n'; MAX_REPORTED / 2 + 10];
        let (lines, discarded) = lines_of(&[&chunk, &chunk]);
        assert_eq!((lines.len(), discarded), (MAX_REPORTED, 20));
    }

    #[test]
    fn invalid_text_is_replaced() {
        assert_eq!(lines_of(&[b"\xff\n"]).0, ["\u{fffd}"]);
    }
}
