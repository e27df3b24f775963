//! Some of the ranks as a world of their own, for collectives among them.

use crate::{Channel, Fabric, FabricError};

/// The members, in the order that sums are taken in; collectives among them run on a channel of their own.
pub struct Group<'f> {
    fabric: &'f dyn Fabric,
    members: Vec<usize>,
    channel: Channel,
}

impl<'f> Group<'f> {
    /// A group of ranks that this one belongs to. All members name the same ranks in the same order, and the same channel.
    ///
    /// # Panics
    /// If this rank is not a member.
    pub fn new(fabric: &'f dyn Fabric, members: Vec<usize>, channel: Channel) -> Group<'f> {
        assert!(members.contains(&fabric.rank()), "a rank is in its own groups");
        Group { fabric, members, channel }
    }
    fn channel(&self, channel: Channel) -> Channel {
        if channel == Channel::COLLECTIVE { self.channel } else { channel }
    }
}

impl Fabric for Group<'_> {
    fn rank(&self) -> usize {
        self.members.iter().position(|m| *m == self.fabric.rank()).expect("checked by `new`")
    }
    fn size(&self) -> usize {
        self.members.len()
    }
    fn send(&self, to: usize, channel: Channel, bytes: &[u8]) -> Result<(), FabricError> {
        self.fabric.send(self.members[to], self.channel(channel), bytes)
    }
    fn receive(&self, from: usize, channel: Channel, into: &mut [u8]) -> Result<(), FabricError> {
        self.fabric.receive(self.members[from], self.channel(channel), into)
    }
    fn check(&self) -> Result<(), FabricError> {
        self.fabric.check()
    }
    fn abort(&self, why: &str) {
        self.fabric.abort(why);
    }
}
