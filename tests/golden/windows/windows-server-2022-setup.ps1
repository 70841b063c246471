$ErrorActionPreference = 'Stop'
function run($program, $arguments) {
    $done = Start-Process $program -ArgumentList $arguments -Wait -PassThru -NoNewWindow
    if ($done.ExitCode -notin 0, 3010) { throw "$program $arguments ended with $($done.ExitCode)" }
}
function say($text) {
    $port = New-Object IO.Ports.SerialPort 'COM1', 115200
    $port.Open()
    $port.WriteLine($text)
    $port.Close()
}
try {
    # OpenSSH from the CD: Add-WindowsCapability would ask Windows Update.
    run msiexec.exe "/i `"$PSScriptRoot\OpenSSH.msi`" /qn /norestart ADDLOCAL=Server"
    Set-Service sshd -StartupType Automatic
    $keys = "$env:ProgramData\ssh\administrators_authorized_keys"
    New-Item -ItemType Directory -Force (Split-Path $keys) | Out-Null
    [IO.File]::WriteAllText($keys, 'ssh-ed25519 AAAA it''s me' + "`n")  # without a byte order mark
    # by their SIDs, for names are translated: SYSTEM and the administrators
    run icacls.exe "`"$keys`" /inheritance:r /grant *S-1-5-18:F /grant *S-1-5-32-544:F"
    Remove-NetFirewallRule -Name obuild-sshd -ErrorAction SilentlyContinue
    New-NetFirewallRule -Name obuild-sshd -DisplayName 'OpenSSH for obuild' -Direction Inbound -Protocol TCP `
        -LocalPort 22 -Action Allow -Profile Any | Out-Null
    # A step must find the machine as the last one left it: awake, not hibernated, not updating itself.
    run powercfg.exe '/hibernate off'
    run powercfg.exe '/setactive 8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c'
    run powercfg.exe '/change standby-timeout-ac 0'
    $policy = 'HKLM\SOFTWARE\Policies\Microsoft\Windows\WindowsUpdate\AU'
    run reg.exe "add $policy /v NoAutoUpdate /t REG_DWORD /d 1 /f"
    Set-Service wuauserv -StartupType Disabled
    run net.exe 'accounts /maxpwage:unlimited'

    say 'obuild: ok'
} catch {
    say ('obuild: failed: ' + ($_ -replace '\s+', ' '))
}
shutdown.exe /s /t 5
