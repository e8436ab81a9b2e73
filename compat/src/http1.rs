//! An HTTP/1 client that pipelines requests.

use std::ops::RangeInclusive;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, split};

use crate::{BoxError, ledger::Ledger, server::Server, work::Work};

/// With `cancels`, the client disconnects during some responses, while others are pending, and
/// continues on a new connection.
pub(crate) async fn connection(
    ids: RangeInclusive<u32>,
    at_once: usize,
    cancels: bool,
    server: &Server,
    ledger: &Ledger,
) -> Result<(), BoxError> {
    let works: Vec<Work> = ids.map(Work::new).collect();
    let mut io = server.connect();
    for works in works.chunks(at_once) {
        let requests: Vec<u8> = works.iter().flat_map(|work| request(*work)).collect();
        // The server may respond before it has read a large request, so writes and reads overlap.
        // Otherwise both sides would wait forever.
        let (reader, mut writer) = split(&mut io);
        let mut reader = BufReader::new(reader);
        let write = async { writer.write_all(&requests).await.map_err(BoxError::from) };
        let read = async {
            for work in works {
                if cancels && work.is_cancelled() {
                    reader.read_exact(&mut [0; 20]).await?;
                    return Ok::<_, BoxError>(false);
                }
                let length = response(&mut reader).await?;
                if length != work.length {
                    return Err(format!("response {} has {length} bytes instead of {}", work.id, work.length).into());
                }
                ledger.received(work.id);
            }
            Ok(true)
        };
        let is_open = tokio::select! {
            biased;
            read = read => read?,
            Err(error) = write => return Err(error),
        };
        if !is_open {
            io = server.connect();
        }
    }
    Ok(())
}

fn request(work: Work) -> Vec<u8> {
    let upload = work.upload();
    let method = if upload == 0 { "GET" } else { "POST" };
    let head = format!("{method} {work} HTTP/1.1\r\nhost: server\r\nte: trailers\r\ncontent-length: {upload}\r\n\r\n");
    [head.as_bytes(), &vec![b'r'; upload]].concat()
}

/// Reads a whole response and returns the length of its body.
async fn response(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Result<usize, BoxError> {
    let mut length = None;
    loop {
        let line = line(reader).await?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = Some(value.parse()?);
        }
    }
    if let Some(length) = length {
        reader.read_exact(&mut vec![0; length]).await?;
        return Ok(length);
    }
    let mut length = 0;
    loop {
        let chunk = usize::from_str_radix(&line(reader).await?, 16)?;
        if chunk == 0 {
            while !line(reader).await?.is_empty() {} // trailers
            return Ok(length);
        }
        reader.read_exact(&mut vec![0; chunk + 2]).await?;
        length += chunk;
    }
}

async fn line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Result<String, BoxError> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Err("the server closed the connection".into());
    }
    Ok(line.trim_end().to_ascii_lowercase())
}
