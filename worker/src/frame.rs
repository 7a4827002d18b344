//! Length-delimited protobuf messages over the socket between agent and trainer.

use std::io::{self, BufRead, Write};

use prost::Message;

/// The largest message taken: a frame beyond it is garbage, not a message.
const MAX_FRAME_BYTES: u64 = 16 << 20;

/// Writes one message.
pub(crate) fn write(to: &mut impl Write, message: &impl Message) -> io::Result<()> {
    to.write_all(&message.encode_length_delimited_to_vec())
}

/// Reads one message; `None` at the end of the stream.
pub(crate) fn read<M: Message + Default>(from: &mut impl BufRead) -> io::Result<Option<M>> {
    let Some(length) = read_length(from)? else { return Ok(None) };
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is larger than {MAX_FRAME_BYTES}"),
        ));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    M::decode(bytes.as_slice()).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Protobuf's varint: seven bits a byte, lowest first.
fn read_length(from: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut length = 0_u64;
    for shift in (0..35).step_by(7) {
        let mut byte = [0_u8];
        match from.read_exact(&mut byte) {
            Ok(()) => {}
            Err(error) if shift == 0 && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        length |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(length));
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a frame's length does not end"))
}

#[cfg(test)]
mod tests {
    use anybit_proto::v1::{TrainerMessage, trainer_message};
    use proptest::prelude::*;

    use super::*;

    fn heartbeat(step: u64) -> TrainerMessage {
        TrainerMessage {
            message: Some(trainer_message::Message::HeartbeatStep(step)),
            ..TrainerMessage::default()
        }
    }

    #[test]
    fn messages_come_back_in_order_and_then_the_end() {
        let mut bytes = Vec::new();
        for step in [0, 1, u64::MAX] {
            write(&mut bytes, &heartbeat(step)).unwrap();
        }
        let mut from = bytes.as_slice();
        for step in [0, 1, u64::MAX] {
            assert_eq!(read(&mut from).unwrap(), Some(heartbeat(step)));
        }
        assert_eq!(read::<TrainerMessage>(&mut from).unwrap(), None);
    }

    #[test]
    fn a_cut_message_is_an_error_and_not_the_end() {
        let mut bytes = Vec::new();
        write(&mut bytes, &heartbeat(300)).unwrap();
        let error = read::<TrainerMessage>(&mut &bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_huge_length_is_refused_before_memory_is_taken() {
        let error = read::<TrainerMessage>(&mut &[0xff, 0xff, 0xff, 0xff, 0x7f][..]).unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut from = bytes.as_slice();
            while let Ok(Some(_)) = read::<TrainerMessage>(&mut from) {}
        }
    }
}
