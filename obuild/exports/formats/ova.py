"""A virtual machine in one file, as vSphere and VirtualBox import it: a description, checksums, a compressed disk.

DMTF, DSP0243, "Open Virtualization Format Specification" 1.1.0; the classes of devices are those of CIM. The names
of the files in it and of the machine are the archive's.
"""

from __future__ import annotations

import hashlib
import tarfile
from io import BytesIO
from pathlib import Path

from obuild.errors import UsageError
from obuild.exports.disk import Disk
from obuild.exports.formats import vmdk
from obuild.guests.profile import Card
from obuild.store import mtree

#: CIM's number and VMware's name of each guest system.
_SYSTEMS = {
    "linux": (101, "otherLinux64Guest"),
    "freebsd": (78, "freebsd64Guest"),
    "openbsd": (65, "otherGuest64"),
    "windows": (102, "windows9Server64Guest"),
}

#: The largest file that an archive of the format ustar can have, in bytes: 11 octal digits.
_USTAR = (1 << 33) - 1


def check(size: int, card: Card) -> None:
    """UsageError if the guest is for other than x86_64, which no importer of such files expects."""
    if card.arch != "x86_64":
        raise UsageError(
            f"an OVA is for x86_64, and the layer is for {card.arch}", hint="--type vmdk has the disk"
        )


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    name = out.name.removesuffix(".ova")
    image = disk.path.with_name(f"{name}-disk1.vmdk")
    vmdk.write(disk, image)
    described = description(disk, name, image.stat().st_size).encode()
    sums = _manifest({f"{name}.ovf": hashlib.sha256(described).hexdigest(), image.name: mtree.digest(image)})
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in ((f"{name}.ovf", described), (f"{name}.mf", sums.encode())):
            tar.addfile(_entry(member, len(data)), BytesIO(data))
        entry = _entry(image.name, image.stat().st_size)
        if entry.size > _USTAR:
            tar.format = tarfile.GNU_FORMAT  # larger sizes are binary there, which importers read
        with image.open("rb") as file:
            tar.addfile(entry, file)
    image.unlink()


def description(disk: Disk, name: str, packed: int) -> str:
    """The machine in OVF. Its disk is the file NAME-disk1.vmdk of `packed` bytes."""
    number, system = _SYSTEMS[disk.card.os]
    mib = max(disk.card.memory >> 20, 1)
    firmware = "efi" if disk.card.firmware == "uefi" else "bios"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:vmw="http://www.vmware.com/schema/ovf"
    xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
    <File ovf:id="file1" ovf:href="{name}-disk1.vmdk" ovf:size="{packed}"/>
  </References>
  <DiskSection>
    <Info>Virtual disks</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{disk.size}" ovf:capacityAllocationUnits="byte"
        ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection>
    <Info>Networks</Info>
    <Network ovf:name="VM Network">
      <Description>The network of the machine</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="{name}">
    <Info>A virtual machine</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="{number}" vmw:osType="{system}">
      <Info>The guest system</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:Description>CPUs</rasd:Description>
        <rasd:ElementName>CPUs</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>{disk.options.cpus}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:Description>Memory</rasd:Description>
        <rasd:ElementName>Memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>{mib}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:Description>SCSI controller</rasd:Description>
        <rasd:ElementName>SCSI controller 0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:ElementName>Disk 1</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>7</rasd:AddressOnParent>
        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>VM Network</rasd:Connection>
        <rasd:ElementName>Network adapter 1</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>E1000</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{firmware}"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


def _manifest(digests: dict[str, str]) -> str:
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in digests.items())


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry
