//! What can go wrong between ranks.

use crate::Channel;

/// See the pages `docs/errors/E042x.md`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
pub enum FabricError {
    /// A wait that took too long.
    #[error("rank {rank}: {action} of message {number} on {channel} with rank {peer} took longer than {seconds} s")]
    #[diagnostic(code(E0421), help("rank {peer} is stalled or runs another program; its last messages say where"))]
    Timeout {
        /// Who waited.
        rank: usize,
        /// `send` or `receive`.
        action: &'static str,
        /// With whom.
        peer: usize,
        /// On what.
        channel: Channel,
        /// The number of the message on its channel, from 0.
        number: u64,
        /// The bound.
        seconds: u64,
    },
    /// A rank is gone.
    #[error("rank {rank}: rank {peer} is gone, before {action} of message {number} on {channel}")]
    #[diagnostic(code(E0422), help("start again with --resume: training goes on from the last checkpoint"))]
    Lost {
        /// Who noticed.
        rank: usize,
        /// Who is gone.
        peer: usize,
        /// `send` or `receive`.
        action: &'static str,
        /// On what.
        channel: Channel,
        /// The number of the message.
        number: u64,
    },
    /// A message that is not the one expected.
    #[error("rank {rank}: message {number} on {channel} from rank {peer}: {what}")]
    #[diagnostic(code(E0423), help("ranks run different plans or binaries"))]
    Mismatch {
        /// Who received.
        rank: usize,
        /// From whom.
        peer: usize,
        /// On what.
        channel: Channel,
        /// The number expected.
        number: u64,
        /// What differs.
        what: String,
    },
    /// NCCL refuses a call, or a communicator failed.
    #[error("rank {rank}: NCCL, {what}, message {number}: {why}")]
    #[diagnostic(code(E0427), help("NCCL_DEBUG=INFO says more; another rank may have failed first"))]
    Nccl {
        /// Who noticed.
        rank: usize,
        /// What was done.
        what: String,
        /// The number of the message or collective on its communicator.
        number: u64,
        /// In NCCL's words.
        why: String,
    },
    /// A device failed while its memory was copied.
    #[error("rank {rank}: {why}")]
    #[diagnostic(code(E0443))]
    Device {
        /// Whose.
        rank: usize,
        /// In the device's words.
        why: String,
    },
    /// Some rank gave up.
    #[error("rank {peer} gave up: {why}")]
    #[diagnostic(code(E0424))]
    Aborted {
        /// Which.
        peer: usize,
        /// In its words.
        why: String,
    },
    /// The ranks did not meet.
    #[error("rank {rank}: {what}")]
    #[diagnostic(code(E0425), help("every rank needs the same address of rank 0 and the same number of ranks"))]
    Meeting {
        /// Who.
        rank: usize,
        /// Why not.
        what: String,
    },
    /// The environment names a rank only in part, or contradicts itself.
    #[error("{source_name}: {what}")]
    #[diagnostic(code(E0426), help("give --rank, --world-size and --rendezvous host:port"))]
    Discovery {
        /// Which variables were read.
        source_name: &'static str,
        /// What is wrong.
        what: String,
    },
}
