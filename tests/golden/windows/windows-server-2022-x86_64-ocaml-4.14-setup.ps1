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
    run cmd.exe '/c', 'curl.exe -fL -o C:\cygwin-setup.exe https://cygwin.com/setup-x86_64.exe'
    run cmd.exe '/c', 'C:\cygwin-setup.exe -q -g -o -O -s https://mirrors.kernel.org/sourceware/cygwin/ -R C:\cygwin64 -l C:\cygwin-packages -P rsync,git,make,patch,unzip,pkgconf,mingw64-x86_64-gcc-core'
    run cmd.exe '/c', 'mkdir C:\opam-bin'
    run cmd.exe '/c', 'curl.exe -fL -o C:\opam-bin\opam.exe https://github.com/ocaml/opam/releases/download/2.3.0/opam-2.3.0-x86_64-windows.exe'
    run cmd.exe '/c', 'setx /M PATH "C:\opam-bin;C:\cygwin64\bin;%PATH%"'
    run cmd.exe '/c', 'C:\cygwin64\bin\git.exe clone https://github.com/ocaml/opam-repository.git C:\opam-repository'
    run cmd.exe '/c', 'C:\opam-bin\opam.exe init -y -k local -a C:\opam-repository --bare --cygwin-location=C:\cygwin64'
    run cmd.exe '/c', 'C:\opam-bin\opam.exe switch create 4.14.2 -y --packages=ocaml-base-compiler.4.14.2'
    run cmd.exe '/c', 'C:\opam-bin\opam.exe pin add -y -k version ocaml-base-compiler 4.14.2'
    run cmd.exe '/c', 'rmdir /s /q C:\cygwin-packages'
    say 'obuild: ok'
} catch {
    say ('obuild: failed: ' + ($_ -replace '\s+', ' '))
}
shutdown.exe /s /t 5
